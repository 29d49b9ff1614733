"""Reinforcement learning in the lab: whole runs, killed ones, and what is refused before any of it."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stepwise import lab
from stepwise.config import BudgetConfig, Config, ModelConfig
from stepwise.errors import BackendError, BudgetExceededError, ConfigError, DataError
from stepwise.training.reinforce import _note, _rate, grpo
from stepwise.training.rollouts import read_rollouts
from stepwise.training.sampler import batch_of
from stepwise.types import Problem
from tests.training import rl_world
from tests.training.rl_world import locate, problems, untimed

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')
# Not of the test session's own process, which may have threads of its own: children begin where the imports are done.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.training.rl_world", "stepwise.training.reinforce", "torch", "peft"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grpo")


@pytest.fixture(scope="module")
def exact(folder: Path) -> Config:
    return rl_world.config(folder)


def child(out: Path, cfg: Config, seconds: float | None = None) -> bool:
    """Run in a process of its own, killed after so many seconds; whether it was."""
    process = CHILDREN.Process(target=rl_world.train, args=(str(out), cfg.model_dump_json()))
    process.start()
    process.join(seconds)
    killed = process.is_alive()
    process.kill()
    process.join()
    assert killed or process.exitcode == 0
    return killed


@pytest.fixture(scope="module")
def whole(folder: Path, exact: Config) -> Path:
    grpo(problems(), exact, folder / "whole", locate=locate)
    return folder / "whole"


def adapter_bytes(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_leaves_an_adapter_metrics_and_the_rollouts_with_their_credit(whole: Path, exact: Config) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows = untimed(whole / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        rollouts = read_rollouts(whole / "rollouts" / f"step-{row['step']:05d}.jsonl")
        assert len(rollouts) == 4
        assert {made.step for made in rollouts} == {row["step"]}
        rewards = [made.reward for made in rollouts if made.reward is not None]
        assert row["reward"] == pytest.approx(sum(rewards) / len(rewards))
        assert row["masked"] == sum(made.reward is None for made in rollouts)
        assert row["generated_tokens"] == sum(len(made.token_ids) for made in rollouts)
        assert row["mismatch"] is None or row["mismatch"] < 1e-4
        for made in rollouts:
            if made.reward == 0.0:
                wrong = locate(Problem(id=made.problem, question=made.question), made.steps)
                assert made.first_error == wrong
                blamed = [i for i, advantage in enumerate(made.step_advantages) if advantage]
                assert blamed == ([] if wrong is None else [wrong])
    assert any(row["trained_tokens"] for row in rows)
    base = AutoModelForCausalLM.from_pretrained(lab.model_path("lab-weak", "safetensors"))
    loaded = PeftModel.from_pretrained(base, str(whole / "adapter"))
    assert any(float(p.detach().abs().max()) > 0 for name, p in loaded.named_parameters() if "lora_B" in name)
    card = json.loads((whole / "run.json").read_text())
    assert card["status"] == "finished"
    written = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()} - {"run.json"}
    assert written <= set(card["files"])


@pytest.mark.slow
def test_a_run_killed_at_any_moment_gives_the_same_adapter_and_rows(whole: Path, folder: Path, exact: Config) -> None:
    out, rng, killed = folder / "killed", random.Random(4), 0
    took = json.loads((whole / "run.json").read_text())["seconds"]
    for _ in range(5):
        if not child(out, exact, rng.uniform(0.4, 1.1) * took):
            break
        killed += 1
    child(out, exact)
    assert killed >= 1
    assert adapter_bytes(out) == adapter_bytes(whole)
    assert untimed(out / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
    for step in range(1, 5):
        name = f"rollouts/step-{step:05d}.jsonl"
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_cap_ends_the_run_at_a_checkpoint_and_it_goes_on_when_it_is_raised(
    whole: Path, exact: Config, tmp_path: Path
) -> None:
    first, out = untimed(whole / "metrics.jsonl")[0]["generated_tokens"], tmp_path / "capped"
    assert exact.rl.save_every == 2

    def capped(tokens: int) -> Config:
        return exact.model_copy(update={"budget": BudgetConfig(total_tokens=tokens)})

    with pytest.raises(BudgetExceededError, match=r"budget\.total_tokens = 100"):
        grpo(problems(), capped(100), tmp_path / "none", locate=locate)
    with pytest.raises(BudgetExceededError, match="1 steps, so the next 1 would take about"):
        grpo(problems(), capped(2 * first - 1), out, locate=locate)
    (only,) = untimed(out / "metrics.jsonl")
    assert only["generated_tokens"] == first  # within the cap requests wait for one another: other last digits
    assert json.loads((out / "checkpoint" / "state.json").read_text())["step"] == 1
    grpo(problems(), capped(100_000), out, locate=locate)
    rows = untimed(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0] == only
    assert adapter_bytes(out)
    spent = [json.loads(line)["usage"] for line in (out / "spent.jsonl").read_text().splitlines()]
    assert sum(usage["generated_tokens"] for usage in spent) == sum(row["generated_tokens"] for row in rows)


def test_what_came_after_the_checkpoint_is_dropped_and_done_again(whole: Path, tmp_path: Path, exact: Config) -> None:
    half = exact.model_copy(update={"rl": exact.rl.model_copy(update={"steps": 3})})
    grpo(problems(), half, tmp_path / "half", locate=locate)
    shutil.copytree(tmp_path / "half", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "run.json").read_text())
    other = json.loads((whole / "run.json").read_text())
    (tmp_path / "out" / "run.json").write_text(
        json.dumps({**card, "status": "failed", **{k: other[k] for k in ("config", "config_hash")}})
    )
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "reward": 9}) + "\n" + '{"torn')
    grpo(problems(), exact, tmp_path / "out", locate=locate)
    assert untimed(tmp_path / "out" / "metrics.jsonl") == untimed(whole / "metrics.jsonl")
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(whole)


def nothing(problem: Problem, solution: str, verdict: Any) -> float:
    return 0.0


def strange(exact: Config, folder: Path, *changed: str) -> Config:
    """The strong model's weights as sampler, in a file that says it is the weak one, for a trainer of the weak one."""
    from stepwise.models.safetensors import fingerprint
    from stepwise.training.sampler import exact_weights

    strong = Config.load(None, ["models.weak.model=llamacpp/lab-strong"])
    wrong = exact_weights(strong, folder / "strong").models.weak.model
    true, said = (fingerprint(lab.model_path(name, "safetensors")).encode() for name in ("lab-strong", "lab-weak"))
    path = Path(wrong.removeprefix("llamacpp/"))
    path.write_bytes(path.read_bytes().replace(true, said))
    weak = exact.models.weak.model_copy(update={"model": wrong})
    made = exact.model_copy(update={"models": exact.models.model_copy(update={"weak": weak})})
    rl = {"steps": 1, **dict(pair.split("=") for pair in changed)}
    return made.model_copy(update={"rl": made.rl.model_copy(update=rl)})


def test_a_sampler_of_other_weights_stops_the_run_at_once(exact: Config, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"differ by .* nats .* more than 0\.001.*ALL_F32.*f32 cache, without flash"):
        grpo(problems(2), strange(exact, folder), tmp_path / "out", locate=locate)
    assert not (tmp_path / "out").exists()  # nothing was computed that a corrected run would stand in the way of


def test_with_a_correction_the_mismatch_is_logged_instead(exact: Config, folder: Path, tmp_path: Path) -> None:
    cfg = strange(exact, folder, "correction=mask")
    grpo(problems(2), cfg, tmp_path / "out", reward=nothing, locate=lambda problem, steps: 0)  # else all are right
    (row,) = untimed(tmp_path / "out" / "metrics.jsonl")
    assert row["mismatch"] > 0.01
    assert row["mismatch_kl"] > 0.001
    assert 0 < row["ess"] < 1


def test_a_batch_without_any_signal_changes_nothing(tmp_path: Path) -> None:
    few = ("rl.steps=9", "rl.save_every=1", "rl.credit.scheme=outcome", "rl.max_tokens=8")  # no answer in 8 tokens
    cfg = rl_world.config(None, *few)
    none = r"in the first 3 batches no rollout has an answer \(12 of 12 rollouts .*; raise rl\.max_tokens"
    for _ in range(2):  # once more: it goes on from the second step, and stops where it did
        with pytest.raises(DataError, match=none):
            grpo(problems(2), cfg, tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()
    row, _ = untimed(tmp_path / "out" / "metrics.jsonl")
    assert (row["reward"], row["masked"], row["kept_groups"], row["no_spread"]) == (None, 4, 0, 1.0)
    assert (row["loss"], row["grad_norm"], row["entropy"], row["trained_tokens"]) == (None, None, None, 0)
    fresh = torch.load(tmp_path / "out" / "checkpoint" / "optimizer.pt", weights_only=True)
    assert not fresh["state"]
    wrong = cfg.model_copy(update={"rl": cfg.rl.model_copy(update={"no_answer": "wrong"})})
    with pytest.raises(DataError, match=none):
        grpo(problems(2), wrong, tmp_path / "wrong")
    assert untimed(tmp_path / "wrong" / "metrics.jsonl")[0]["reward"] == 0.0


def test_a_run_whose_first_batches_give_no_token_an_advantage_stops_and_says_why(tmp_path: Path) -> None:
    cfg = rl_world.config(None, "rl.steps=2", "rl.credit.scheme=outcome")
    said = r"in the first 2 batches no token has an advantage \(\d+ of 8 .*of 4 groups 0 are all right and 4 all wrong"
    with pytest.raises(DataError, match=said):
        grpo(problems(2), cfg, tmp_path / "out", reward=nothing)
    assert not (tmp_path / "out" / "adapter").exists()
    blames = rl_world.config(None, "rl.steps=1")  # all wrong, but first_error learns from that
    assert grpo(problems(2), blames, tmp_path / "blames", reward=nothing, locate=lambda problem, steps: 0).is_dir()


def test_the_examples_of_ones_own_credit_and_reward_train_as_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    settings = ("rl.credit=examples.own_credit:LastStep", "rl.reward=examples.own_reward:Short")
    rl = {"steps": 1, "problems": 2, "group": 4, "max_tokens": 120}
    cfg = Config.load(None, [*settings, *(f"rl.{name}={value}" for name, value in rl.items()), "lora.rank=4"])
    grpo(problems(2), cfg, tmp_path / "out")
    rows = read_rollouts(tmp_path / "out" / "rollouts" / "step-00001.jsonl")
    paid = [row.reward for row in rows if row.verdict == "CORRECT"]
    assert paid
    assert all(0.5 <= (reward or 0.0) < 1.0 for reward in paid)
    credited = [[bool(advantage) for advantage in row.step_advantages] for row in rows if any(row.step_advantages)]
    assert credited
    assert all(line == [False] * (len(line) - 1) + [True] for line in credited)


def test_a_loss_that_is_not_finite_stops_with_the_offending_rollouts_saved(tmp_path: Path) -> None:
    cfg = rl_world.config(None, "rl.steps=1", "lora.micro_tokens=16", "rl.updates=2", "rl.learning_rate=1e30")
    with pytest.raises(DataError, match=r"loss is nan.*failed-batch\.jsonl"):  # that of the second update
        grpo(problems(2), cfg, tmp_path / "out", locate=locate)
    assert len(read_rollouts(tmp_path / "out" / "failed-batch.jsonl")) == 1


def test_problems_and_judges_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    cfg, out = rl_world.config(), tmp_path / "out"
    good = problems(1)[0]
    for bad, words in (
        ([], "no problem can be used"),
        ([good, Problem("q", "What?")], "1 problems cannot be graded .q: it has no answer"),
        ([good, Problem("q", "What?", "?!")], "1 problems cannot be graded"),
        ([good, good], "occurs twice"),
    ):
        with pytest.raises(DataError, match=words):
            grpo(bad, cfg, out, locate=locate)
    assert not out.exists()
    with pytest.raises(ConfigError, match=r"first_error is \"given\""):
        grpo([good], cfg, out)
    with pytest.raises(ConfigError, match=r"scorer is given, but .* asks locate"):
        grpo([good], cfg, out, locate=locate, scorer=object())
    with pytest.raises(ConfigError, match="asks nobody"):
        grpo([good], rl_world.config(None, "rl.credit.scheme=outcome"), tmp_path / "o", locate=locate)
    long = Problem("long", "Mia has 5 coins. " * 500, "5")
    with pytest.raises(DataError, match=r"'long': its prompt has \d+ tokens.*context of 2048"):
        grpo([long], cfg, tmp_path / "long", locate=locate)
    marked = Problem("marked", "What is <|im_end|>?", "5")
    with pytest.raises(DataError, match="special token"):
        grpo([marked], cfg, tmp_path / "marked", locate=locate)


def test_models_and_adapters_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    cfg = rl_world.config()

    def with_weak(**changed: Any) -> Config:
        weak = ModelConfig(**{**cfg.models.weak.model_dump(), **changed})
        return cfg.model_copy(update={"models": cfg.models.model_copy(update={"weak": weak})})

    with pytest.raises(ConfigError, match=r"models\.weak\.adapter is lab-critic"):
        grpo(problems(1), with_weak(adapter="lab-critic"), tmp_path / "a", locate=locate)
    with pytest.raises(ConfigError, match="openai/gpt has no train_from"):
        grpo(problems(1), with_weak(model="openai/gpt"), tmp_path / "b", locate=locate)
    with pytest.raises(ConfigError, match=r"context is 9000, but .* has 2048 positions"):
        grpo(problems(1), with_weak(context=9000), tmp_path / "d", locate=locate)
    with pytest.raises(DataError, match=r"has no adapter_config\.json"):
        grpo(problems(1), cfg, tmp_path / "c", adapter=tmp_path, locate=locate)


def test_an_adapter_of_another_base_is_refused(whole: Path, tmp_path: Path) -> None:
    from tests.tiny_models import tiny_model

    base = tiny_model(tmp_path / "tiny")
    cfg = rl_world.config()
    weak = cfg.models.weak.model_copy(update={"train_from": str(base)})
    other = cfg.model_copy(update={"models": cfg.models.model_copy(update={"weak": weak})})
    with pytest.raises(DataError, match="does not fit the base"):
        grpo(problems(1), other, tmp_path / "out", adapter=whole / "adapter", locate=locate)


def test_a_run_goes_on_from_an_adapter_without_merging_it(whole: Path, exact: Config, tmp_path: Path) -> None:
    from stepwise.models.safetensors import fingerprint

    before = fingerprint(lab.model_path("lab-weak", "safetensors"))
    cfg = exact.model_copy(update={"rl": exact.rl.model_copy(update={"steps": 1})})
    out = grpo(problems(), cfg, tmp_path / "out", adapter=whole / "adapter", locate=locate)
    assert untimed(tmp_path / "out" / "metrics.jsonl")[0]["mismatch"] < 1e-4  # the sampler has the same adapter
    assert fingerprint(lab.model_path("lab-weak", "safetensors")) == before
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4


def test_every_pass_over_the_problems_is_shuffled_and_no_batch_has_one_twice() -> None:
    names = [f"p{i}" for i in range(7)]
    batches = [batch_of(names, 3, 0, step) for step in range(1, 9)]
    assert batches == [batch_of(names, 3, 0, step) for step in range(1, 9)]
    assert all(len(set(batch)) == 3 for batch in batches)
    for first in range(0, 8, 2):
        assert max(Counter(batches[first] + batches[first + 1]).values()) == 1
    assert batches[:2] != batches[2:4]
    assert batch_of(names, 3, 1, 1) != batches[0]
    assert sorted(batch_of(names, 99, 0, 5)) == names


def test_the_learning_rate_rises_in_the_warm_up_and_stays() -> None:
    cfg = rl_world.config(None, "rl.warmup=3")
    assert [_rate(cfg, step) / cfg.rl.learning_rate for step in (1, 2, 3, 4, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert _rate(rl_world.config(), 1) == rl_world.config().rl.learning_rate


def test_the_line_under_the_bar_says_how_a_step_went(whole: Path) -> None:
    row = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    said = _note({**row, "reward": 0.41, "kept_groups": 9, "groups": 16, "entropy": 0.123, "mismatch": 6e-7})
    assert said.startswith("reward 0.41, kept 9/16, entropy 0.12, mismatch 6e-07, ")
    assert "tokens/s" in said
    empty = _note({**row, "reward": None, "entropy": None, "mismatch": None, "train_seconds": 0.0})
    assert empty.startswith("no reward, kept")
