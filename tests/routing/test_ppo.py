"""The parts of proximal policy optimization against computations by hand, and one update against its formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.errors import ConfigError
from stepwise.routing.learned import _features, encoded, forward
from stepwise.routing.pomdp.simulator import Decisions
from stepwise.routing.ppo import (
    PpoSettings,
    _initial,
    _network,
    _policy_loss,
    _PpoLearner,
    _value_loss,
    advantages,
    rewards,
)
from tests.routing.learning_world import WORLD

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
KINDS = ("agg", "seq")


def some(n: int = 30, seed: int = 0) -> Any:
    world = replace(WORLD, strong_scored=True, token_spread=0.5)
    return world.play(lambda d: (d.scores[:, -1] * 100 % 3).astype(int), n, runs=(0, 1, 2), seed=seed)


def inputs(kind: Any, decisions: Decisions) -> tuple[Any, Any]:
    return torch.as_tensor(encoded(kind, decisions.step, decisions.scores, decisions.tokens)), torch.as_tensor(
        decisions.step
    )


def test_advantages_are_the_exponentially_weighted_sums_of_temporal_differences() -> None:
    earned, values = np.array([1.0, -2.0, 0.5, 3.0]), np.array([0.5, 0.25, 1.0, -1.0])
    episode, step = np.array([0, 1, 0, 0]), np.array([0, 0, 1, 3])  # as they come: by step
    last = 3.0 + 1.0
    middle = (0.5 - 1.0 - 1.0) + 0.9 * last
    first = (1.0 + 1.0 - 0.5) + 0.9 * middle
    assert advantages(earned, values, episode, step, 0.9) == pytest.approx([first, -2.25, middle, last])
    whole = advantages(earned, values, episode, step, 1.0) + values
    assert whole == pytest.approx([4.5, -2.0, 3.5, 3.0])  # all that is still earned


def test_rewards_price_strong_tokens_and_drafts_and_pay_the_last_decision_of_a_right_solution() -> None:
    nothing = np.zeros((4, 1))
    decisions = Decisions(
        np.array([0, 1, 0, 1]), np.array([0, 0, 1, 2]), np.array([1, 0, 0, 1]), np.array([10.0, 0, 0, 30]),
        np.array([5.0, 7, 0, 0]), nothing, nothing,
    )  # fmt: skip
    assert rewards(decisions, [True, False], 0.01) == pytest.approx([-0.1, 0, 1, -0.3])
    assert rewards(decisions, [False, True], 0.01, 0.5) == pytest.approx([-0.125, -0.035, 0, 0.7])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # no more to be gained beyond the clip
        (0.5, 2.0, -1.0, -2.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 2.0),  # but all that was lost
    ],
)
def test_the_policys_loss_and_slope_are_clipped_on_the_side_of_gain(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    share = torch.tensor([0.4 * ratio], dtype=torch.float64, requires_grad=True)
    found = _policy_loss(share.log(), torch.tensor([0.4]).double().log(), torch.tensor([advantage]).double(), 0.2)
    found.backward()
    assert found.item() == pytest.approx(loss)
    assert share.grad.item() * 0.4 == pytest.approx(slope)


def test_the_values_loss_is_of_the_worse_of_free_and_clipped_values() -> None:
    values = torch.tensor([1.0, 0.1, 0.5], requires_grad=True)
    loss = _value_loss(values, torch.zeros(3), torch.tensor([1.0, 1.0, -1.0]), 0.2)
    # clipped to .2: (.8)^2; within the clip: (.9)^2; free is worse: (1.5)^2
    assert loss.item() == pytest.approx(0.5 * (0.64 + 0.81 + 2.25) / 3)
    loss.backward()
    assert values.grad.tolist() == pytest.approx([0.0, -0.9 / 3, 1.5 / 3])


def test_weights_begin_orthogonal_and_the_actor_undecided() -> None:
    weights = _initial("agg", 3, 0)
    inner = weights["body.1.weight"].double()
    assert torch.allclose(inner @ inner.T, 2 * torch.eye(64, dtype=torch.float64), atol=1e-5)
    last = weights["actor.1.weight"].double()
    assert torch.allclose(last @ last.T, 1e-4 * torch.eye(3, dtype=torch.float64), atol=1e-8)
    assert {tuple(weights[name].shape) for name in ("actor.0.weight", "critic.0.weight")} == {(64, 64)}
    assert not torch.equal(weights["body.0.weight"], _initial("agg", 3, 1)["body.0.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_inference_without_torch_gives_the_networks_logits(kind: Any) -> None:
    weights = {name: value.double() for name, value in _initial(kind, 3, 0).items()}
    generator = torch.Generator().manual_seed(1)
    for value in weights.values():
        value += 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    decisions = some().decisions
    logits, values = _network(kind, weights, *inputs(kind, decisions))
    assert values.shape == (len(decisions),)
    arrays = {name: value.numpy() for name, value in weights.items()}
    for i in range(len(decisions)):
        until = decisions.step[i] + 1
        ours = forward(kind, arrays, decisions.scores[i : i + 1, :until], decisions.tokens[i : i + 1, :until])[0]
        assert ours == pytest.approx(logits[i].numpy(), abs=1e-6)
    assert logits.std() > 0.1


def test_the_five_features_are_trims() -> None:
    scores, tokens = np.array([[0.5, np.nan, 0.8, 0.3]]), np.array([[10.0, 20, 30, 60]])
    assert _features(scores, tokens)[0] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert _features(scores[:, :1], tokens[:, :1])[0] == pytest.approx([1, 1, 0.5, 10 / 300, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_of_an_update_follows_the_whole_losss_gradient_cut_to_its_norm(kind: Any) -> None:
    settings = PpoSettings(kind=kind, stay=(2,), epochs=1, dropout=0.0, price=0.01)
    learner, made = _PpoLearner(settings), some(64)
    earned = rewards(made.decisions, made.right, settings.price)
    weights = {name: value.detach().clone().requires_grad_() for name, value in learner.weights.items()}
    x, last = inputs(kind, made.decisions)
    logits, values = _network(kind, weights, x.float(), last)
    gain = advantages(earned, values.detach().double().numpy(), made.decisions.episode, made.decisions.step, 0.95)
    target = values.detach() + torch.as_tensor(gain).float()
    normal = torch.as_tensor((gain - gain.mean()) / gain.std()).float()
    logs = logits.log_softmax(-1)
    chosen = logs[torch.arange(len(logs)), torch.as_tensor(made.decisions.action)]
    loss = -(normal * (chosen - chosen.detach()).exp()).mean() + 0.25 * ((values - target) ** 2).mean()
    (loss + 0.01 * (logs.exp() * logs).sum(-1).mean()).backward()
    norm = torch.stack([value.grad.norm() for value in weights.values()]).norm()
    learner.update(made.decisions, earned)
    for name, value in weights.items():
        step = value.grad * min(1.0, 0.5 / norm.item())
        assert torch.allclose(learner.weights[name].grad, step, atol=1e-6), name
        moved = value.detach() - 3e-4 * step / (step.abs() + 1e-8)  # Adam's first step
        big = step.abs() > 1e-4
        assert torch.allclose(learner.weights[name].detach()[big], moved[big], atol=2e-6), name


def test_rate_and_entropy_fall_over_the_batches_and_dropout_repeats() -> None:
    settings, made = PpoSettings(batches=4, stay=(2,)), some()
    twins = [_PpoLearner(settings) for _ in range(2)]
    for learner in twins:
        for _ in range(2):
            torch.rand(3)  # whatever else is drawn does not matter
            learner.update(made.decisions, rewards(made.decisions, made.right, settings.price))
    assert twins[0].optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 * 0.75)
    for name, value in twins[0].arrays().items():
        assert np.array_equal(value, twins[1].arrays()[name])


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.checkpoint"
    path.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"c\.checkpoint is no checkpoint"):
        _PpoLearner.begin(path, PpoSettings(), "")


@pytest.mark.parametrize(
    "wrong", [{"kind": "lstm"}, {"price": -1}, {"stay": (1,)}, {"clip": 0}, {"dropout": 1}, {"price": float("nan")}]
)
def test_settings_that_make_no_training_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PpoSettings(**wrong)
