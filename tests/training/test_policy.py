"""Updates on rollouts in double precision: micro-batches change nothing, and each term is the one asked for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from stepwise.config import Config, ModelConfig
from stepwise.config.training import LoraConfig
from stepwise.training.lora import load_trainee
from stepwise.training.losses import LASER_BETA, importance_weights, rollout_weights
from stepwise.training.policy import RolloutRow, forward, update
from tests.tiny_models import tiny_model

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

MARK = 5
LENGTHS = (7, 3, 5, 1)


@pytest.fixture(scope="module")
def trainee(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tiny_model(tmp_path_factory.mktemp("policy") / "base")
    weak = ModelConfig(model="llamacpp/none.gguf", train_from=str(base))
    cfg = Config()
    cfg = cfg.model_copy(update={"models": cfg.models.model_copy(update={"weak": weak})})
    made = load_trainee(cfg)
    made.model.double()
    with torch.no_grad():  # an adapter that does something
        generator = torch.Generator().manual_seed(1)
        for parameter in made.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def config(**changes: Any) -> Config:
    cfg = Config()
    micro = changes.pop("micro_tokens", 10_000)
    lora = LoraConfig.model_construct(**{**dict(cfg.lora), "micro_tokens": micro, "tile": 4})  # less than is allowed
    return cfg.model_copy(update={"lora": lora, "rl": cfg.rl.model_copy(update={"max_tokens": 8, **changes})})


def rows(loss: Any = "dr_grpo") -> list[Any]:
    rng = np.random.default_rng(3)
    made = []
    for number, (length, weight) in enumerate(zip(LENGTHS, rollout_weights(LENGTHS, loss, 8), strict=True)):
        prompt = tuple(rng.integers(10, 400, 4 + number).tolist())
        ids = tuple(rng.integers(10, 400, length).tolist())
        made.append(
            RolloutRow(prompt, ids, rng.normal(-2, 1, length), number % 2, rng.normal(0, 1, length), weight, 0.25)
        )
    return made


def gradients(trainee: Any) -> list[Any]:
    found = [parameter.grad.clone() for parameter in trainee.trainable()]
    trainee.model.zero_grad(set_to_none=True)
    return found


def updated(trainee: Any, cfg: Config, loss: Any = "dr_grpo", laser: Any = None, **known: Any) -> tuple[Any, ...]:
    """Figures and first log-probabilities of an update, and the gradients of its first step; `known` is per row."""
    seen: list[list[Any]] = []

    def apply() -> float:
        seen.append(gradients(trainee))
        return 1.0

    made = rows(loss)
    for name, values in known.items():
        for row, value in zip(made, values, strict=True):
            setattr(row, name, value)
    figures, first = update(trainee, made, cfg, apply, laser=laser)
    return figures, seen[0], first


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "grpo_lambda"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(trainee: Any, loss: Any) -> None:
    known: dict[str, Any] = {
        "old": [line + 0.05 for line in forward(trainee, rows(), config())[0]],
        "base": forward(trainee, rows(), config(), base=True)[0],
        "correction": [np.full(length, 0.5 + 0.1 * length) for length in LENGTHS],
        "laser": (MARK, -7.0),
    }
    settings = {"loss": loss, "kl": 0.3, "laser": 0.2, "clip_low": 0.5, "clip_high": 0.5}
    whole, expected, _ = updated(trainee, config(**settings), loss, **known)
    parts, found, _ = updated(trainee, config(**settings, micro_tokens=16), loss, **known)
    assert parts == pytest.approx(whole, abs=1e-12)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_gradient_is_that_of_weighted_advantages_times_log_probabilities(trainee: Any) -> None:
    _, found, _ = updated(trainee, config())
    total = 0.0
    for row in rows():
        ids = torch.tensor([[*row.prompt, *row.ids]])
        logprobs = trainee.model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        own = logprobs.gather(1, ids[0, 1:, None]).squeeze(1)[len(row.prompt) - 1 :]
        total = total - row.weight * (torch.from_numpy(row.advantages) * own).sum()
    total.backward()  # type: ignore[attr-defined]
    for a, b in zip(found, gradients(trainee), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_pass_over_the_base_is_one_without_the_adapter(trainee: Any) -> None:
    (own, _), (base, marks) = (
        forward(trainee, rows(), config(micro_tokens=12), mark=MARK, base=alone) for alone in (False, True)
    )
    for row, line, mark in zip(rows(), base, marks, strict=True):
        ids = torch.tensor([[*row.prompt, *row.ids, MARK]])
        with torch.no_grad(), trainee.model.disable_adapter():
            logprobs = trainee.model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        expected = logprobs.gather(1, ids[0, 1:, None]).squeeze(1)[len(row.prompt) - 1 :]
        np.testing.assert_allclose([*line, mark], expected.numpy(), atol=1e-10)
    assert max(np.abs(a - b).max() for a, b in zip(own, base, strict=True)) > 1e-3


def test_lasers_loss_pulls_the_token_after_each_rollout_to_its_reward(trainee: Any) -> None:
    _, marks = forward(trainee, rows(), config(), mark=MARK)
    plain, *_ = updated(trainee, config())
    made, *_ = updated(trainee, config(laser=2.0), laser=(MARK, -6.0))
    errors = [(LASER_BETA * (mark + 6.0) - number % 2) ** 2 for number, mark in enumerate(marks)]
    assert made["loss"] - plain["loss"] == pytest.approx(2.0 * 0.25 * sum(errors), abs=1e-10)


def test_with_several_updates_the_ratio_is_to_the_first_passs_log_probabilities(trainee: Any) -> None:
    old = [np.full(length, -3.0) for length in LENGTHS]
    made, _, first = updated(trainee, config(updates=2, clip_low=0.01, clip_high=0.01), old=old)
    assert made["clip_share"] > 0
    assert [len(line) for line in first] == list(LENGTHS)
    assert updated(trainee, config())[0]["clip_share"] == 0


def test_what_is_checked_are_the_members_of_the_micro_batch_at_work(trainee: Any) -> None:
    broken = [
        dataclasses.replace(row, advantages=row.advantages * np.inf) if i == 2 else row for i, row in enumerate(rows())
    ]
    seen: list[tuple[list[int], dict[str, float]]] = []

    def check(part: Any, values: Any) -> None:
        seen.append((list(part), dict(values)))
        if not np.isfinite(list(values.values())).all():
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        update(trainee, broken, config(micro_tokens=12), lambda: 1.0, check)
    trainee.model.zero_grad(set_to_none=True)
    assert seen[-1][0] == [2]
    assert sorted(row for part, _ in seen for row in part) == [0, 2]  # longest first


def test_a_correction_weighs_each_token_by_how_likely_the_trainer_finds_it(trainee: Any) -> None:
    trainer, sampler = torch.tensor([-1.0, -1.0]).double(), torch.tensor([-1.5, -0.5]).double()
    weights = importance_weights(trainer, sampler, "truncate", 1.5).numpy()
    assert weights.tolist() == pytest.approx([1.5, float(np.exp(-0.5))])
    half = [np.full(length, 0.5) for length in LENGTHS]
    _, plain, _ = updated(trainee, config())
    _, halved, _ = updated(trainee, config(), correction=half)
    for a, b in zip(halved, plain, strict=True):
        torch.testing.assert_close(a, 0.5 * b, rtol=0, atol=1e-12)
