"""Rollouts that ask for help: what is sampled and what is not, what a call costs, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.config import Config
from stepwise.credit import load_credit
from stepwise.errors import ConfigError, DataError
from stepwise.grading import Verdict
from stepwise.models.base import Backend, Capabilities, Completion, Request
from stepwise.training.crediting import Labels, credit_groups
from stepwise.training.policy import RolloutRow, forward, update
from stepwise.training.reinforce import grpo
from stepwise.training.relay import RelaySampler, rows_of
from stepwise.training.rollouts import RlRollout, grade_rollouts
from stepwise.types import Problem, Usage
from tests.training import rl_world
from tests.training.rl_world import problems, untimed

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')


MARKER = "<|reserved_0|>"
CALL = 6  # its id in the lab


def settings(*more: str) -> tuple[str, ...]:
    return (f"rl.marker={MARKER}", "rl.strong_cost=0.01", "rl.credit.scheme=outcome", "rl.no_answer=wrong", *more)


def rollout(
    name: str, ids: Sequence[int], calls: Sequence[int], foreign: Sequence[tuple[int, int]], **more: Any
) -> RlRollout:
    spans = [(a - 1, b) for a, b in foreign] or [(0, len(ids))]
    return RlRollout(
        name, 1, "p", "?", 0, "text", ("step",) * len(spans), tuple(spans), tuple(ids), (-0.5,) * len(ids), "answer",
        calls=tuple(calls), foreign=tuple(foreign), **more,
    )  # fmt: skip


# ----- credit by hand


def test_the_price_of_strong_tokens_is_in_the_reward_and_in_the_groups_baseline() -> None:
    known = {"p": Problem("p", "1 + 1?", "2")}
    right, wrong = r"\boxed{2}", r"\boxed{3}"
    group = [
        dataclasses.replace(rollout(f"r{i}", (CALL, 9, 8), (0,), ((1, 3),), strong_tokens=tokens), text=text)
        for i, (text, tokens) in enumerate([(right, 0), (right, 40), (wrong, 0), (wrong, 40)])
    ]
    graded = grade_rollouts(group, known, "wrong", strong_cost=0.01)
    assert [row.reward for row in graded] == [1.0, pytest.approx(0.6), 0.0, pytest.approx(-0.4)]
    assert [row.verdict for row in graded] == [Verdict.CORRECT] * 2 + [Verdict.WRONG] * 2
    credited, advantages, is_trained = credit_groups(graded, [Labels()] * 4, load_credit(Config().rl.credit), 0)
    mean = (1.0 + 0.6 + 0.0 - 0.4) / 4  # .3
    for row, line in zip(graded, advantages, strict=True):
        assert row.reward is not None
        assert line.tolist() == pytest.approx([row.reward - mean, 0.0, 0.0])  # the call alone was sampled
    assert all(is_trained)
    assert [row.step_advantages[0] for row in credited] == pytest.approx([0.7, 0.3, -0.3, -0.7])


def test_a_rollout_is_its_text_without_calls_and_each_call_behind_the_text_before_it() -> None:
    made = rollout("r", (11, 12, CALL, 21, 22, 13, CALL, 23), (2, 6), ((3, 5), (7, 8)))
    advantages = np.array([0.5, 0.5, 0.5, 0.0, 0.0, 0.5, 0.5, 0.0])
    rows, owners = rows_of([made], {"p": (1, 2)}, [advantages], [0.25], [0.0])
    assert owners == [0, 0, 0]
    text, first, second = rows
    assert (text.prompt, text.ids) == ((1, 2), (11, 12, 21, 22, 13, 23))
    assert text.mask.tolist() == [True, True, False, False, True, False]
    assert (first.prompt, first.ids) == ((1, 2, 11, 12), (CALL,))
    assert (second.prompt, second.ids) == ((1, 2, 11, 12, 21, 22, 13), (CALL,))
    assert [row.weight for row in rows] == [0.25] * 3
    assert [row.advantages.tolist() for row in rows] == [[0.5, 0.5, 0.0, 0.0, 0.5, 0.0], [0.5], [0.5]]
    only = rollout("r", (CALL, 21), (0,), ((1, 2),))  # nothing of its text was sampled
    assert [row.ids for row in rows_of([only], {"p": (1,)})[0]] == [(CALL,)]


# ----- gradients


def gradients(trainee: Any, rows: Sequence[RolloutRow], cfg: Config) -> list[Any]:
    trainee.model.zero_grad(set_to_none=True)
    found: list[Any] = []

    def keep() -> float:
        found.extend(p.grad.clone() for p in trainee.model.parameters() if p.grad is not None)
        return 1.0

    update(trainee, rows, cfg, keep)
    return found


@pytest.fixture(scope="module")
def trainee() -> Any:
    from stepwise.training.lora import load_trainee

    return load_trainee(rl_world.config(None))


def test_a_foreign_token_has_no_gradient_of_its_own(trainee: Any) -> None:
    cfg, prompt = rl_world.config(None), tuple(range(300, 310))
    ids, mask = (321, 322, 330, 331), np.array([True, True, False, False])

    def row(ids: tuple[int, ...], advantages: Sequence[float], sampled: Any) -> RolloutRow:
        return RolloutRow(prompt, ids, np.zeros(len(ids)), 1.0, np.array(advantages), 0.5, sampled=sampled)

    # Behind the last sampled token other foreign tokens, or none, or advantages on them change nothing.
    wanted = gradients(trainee, [row(ids[:2], [1.0, 1.0], None)], cfg)
    for foreign, advantages in (((330, 331), [1.0, 1.0, 0.0, 0.0]), ((340, 341), [1.0, 1.0, 5.0, -5.0])):
        found = gradients(trainee, [row((*ids[:2], *foreign), advantages, mask)], cfg)
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found, wanted, strict=True))
    # Before a sampled token they are its context.
    behind = np.array([False, False, True])
    one, other = (gradients(trainee, [row((*f, 321), [0, 0, 1.0], behind)], cfg) for f in ((330, 331), (340, 341)))
    assert not all(torch.allclose(a, b, atol=1e-7) for a, b in zip(one, other, strict=True))


# ----- sampling


class Strong(Backend):
    """Answers with a fixed step, and remembers what it was shown."""

    name, parameters, capabilities = "strong", 10, Capabilities()

    def __init__(self, text: str = "Say it is 7.", finish: Any = "step") -> None:
        self.text, self.finish, self.seen = text, finish, list[Request]()

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        self.seen += requests
        usage = Usage("strong", 1, 5, 5, 6)
        return [Completion(i, 0, self.text, self.finish, usage=usage) for i in range(len(requests))]

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("relay")


@pytest.fixture(scope="module")
def eager(folder: Path) -> Path:
    """An adapter of lab-weak that asks for help now and then."""
    from stepwise.data.examples import Example
    from stepwise.training.supervised import sft

    cfg = Config.load(None, ["sft.epochs=30", "sft.batch=8", "sft.learning_rate=5e-3"])
    rows = [
        Example(
            f"{p.id}/{kind}", p.question, p.answer or "", (), text, kind, {"problem": p.id}, {}, cfg.prompt.hash, "", 0,
            0, 0,
        )  # type: ignore[arg-type]
        for p in problems(4)
        for kind, text in (("call", MARKER), ("kept", "Each of the 4 parts has 36 / 4 = 9."))
    ]  # fmt: skip
    return sft(rows, cfg, folder / "eager")


def test_the_marker_is_in_no_text_no_prompt_and_no_context(eager: Path, folder: Path) -> None:
    from stepwise.training.lora import load_trainee

    cfg = rl_world.config(folder, *settings("rl.group=4"))
    strong = Strong()
    with RelaySampler(cfg, strong=strong) as sampler:
        trainee = load_trainee(cfg, adapter=eager)
        sampler.attach(trainee)
        rollouts, _ = sampler.sample(problems(4), sampler.prompts(problems(4), trainee), step=1)
        prompts = sampler.prompts(problems(4), trainee)
        asked = [row for row in rollouts if row.calls]
        assert asked
        assert {len(row.calls) for row in rollouts} != {len(row.steps) for row in rollouts}  # not at each step
        for row in rollouts:
            assert row.strong_tokens == 6 * len(row.calls)
            assert [row.token_ids[place] for place in row.calls] == [CALL] * len(row.calls)
            assert row.token_ids.count(CALL) == len(row.calls)
            assert MARKER not in row.text
            assert row.steps.count("Say it is 7.") == len(row.calls)
            text = sampler.engine.detokenize(row.token_ids).decode("utf-8", "replace")
            assert text.replace("\n\n", "|").strip("|") == row.text.replace("\n\n", "|")
            assert (np.array(row.logprobs)[~row.sampled] == 0).all()
        # What the trainer computes of the sampled tokens, calls included, is what was sampled.
        rows, _ = rows_of(rollouts, prompts)
        for line, row in zip(forward(trainee, rows, cfg)[0], rows, strict=True):
            assert line[row.mask] == pytest.approx(row.sampler[row.mask], abs=1e-3)
            assert (line[~row.mask] == 0).all()
            assert CALL not in row.prompt
    assert len(strong.seen) == sum(len(row.calls) for row in rollouts)
    assert not any(MARKER in step.text or CALL in step.token_ids for request in strong.seen for step in request.prefix)
    assert not any(request.marker or request.token_ids for request in strong.seen)


def test_a_strong_step_that_ends_the_solution_ends_the_rollout(eager: Path) -> None:
    from stepwise.training.lora import load_trainee

    cfg = rl_world.config(None, *settings("rl.group=4"))
    with RelaySampler(cfg, strong=Strong(r"So \boxed{7}.", "answer")) as sampler:
        trainee = load_trainee(cfg, adapter=eager)
        sampler.attach(trainee)
        rollouts, _ = sampler.sample(problems(2), sampler.prompts(problems(2), trainee), step=1)
    for row in rollouts:
        assert len(row.calls) <= 1
        assert not row.calls or (row.finish, row.steps[-1]) == ("answer", r"So \boxed{7}.")


# ----- whole runs


def test_a_run_goes_on_where_it_was_stopped_and_counts_what_help_cost(folder: Path, eager: Path) -> None:
    cfg = rl_world.config(folder, *settings("rl.steps=2", "rl.save_every=1", "rl.group=4"))
    grpo(problems(4), cfg, folder / "whole", adapter=eager)
    rows = untimed(folder / "whole/metrics.jsonl")
    assert max(row["strong_tokens"] for row in rows) > 0
    assert all(row["mismatch"] < 1e-3 for row in rows if row["mismatch"] is not None)
    graded = 0

    def stopping(problem: Problem, text: str, verdict: Any) -> float:
        nonlocal graded
        graded += 1
        if graded == 9:  # of the second step
            raise KeyboardInterrupt
        return float(verdict is Verdict.CORRECT)

    with pytest.raises(KeyboardInterrupt):
        grpo(problems(4), cfg, folder / "stopped", adapter=eager, reward=stopping)
    grpo(problems(4), cfg, folder / "stopped", adapter=eager, reward=stopping)
    assert untimed(folder / "stopped/metrics.jsonl") == rows


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl.marker=call for help"], r"no token 'call for help', which is split into"),
        (["rl.credit.scheme=pure_min"], r"rl\.credit\.scheme needs scores, and with rl\.marker not all steps"),
        (["models.strong.model=llamacpp/nowhere.gguf"], r"nowhere\.gguf"),
    ],
)
def test_what_cannot_ask_is_refused_before_anything_is_computed(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        grpo(problems(2), rl_world.config(None, *settings(*overrides)), tmp_path / "out")


def test_a_marker_that_stands_in_a_problem_is_refused(tmp_path: Path) -> None:
    given = [*problems(1), dataclasses.replace(problems(2)[1], question=f"What is 2 + 2? {MARKER}")]
    with pytest.raises(DataError, match=r"holds the marker '<\|reserved_0\|>' in its question"):
        grpo(given, rl_world.config(None, *settings()), tmp_path / "out")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl.strong_cost=0.1"], "strong_cost is 0.1, but nobody is asked"),
        ([f"rl.marker={MARKER}", "rl.laser=0.1"], "laser reads a rollout as one text"),
        ([f"rl.marker={MARKER}", "rl.loss=grpo_lambda"], "grpo_lambda"),
    ],
)
def test_settings_that_exclude_one_another_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.load(None, overrides)
