"""Labels from rollouts and from a critic: the search for the first error, and whole runs on sums of four numbers."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stepwise.critics import ErrorLocalizer
from stepwise.data.step_labels import LabelledSolution, load_step_labels
from stepwise.interventions.settings import Writers
from stepwise.interventions.step_labels import (
    COST,
    LabelledAttempt,
    label_steps,
    read_attempts,
    tokens_of,
)
from stepwise.interventions.step_search import LabelSettings, bisect, every_step, is_bad
from stepwise.models.base import Completion
from stepwise.types import Problem
from tests.critics.critic import verified
from tests.fakes import ScriptedBackend
from tests.interventions import world
from tests.interventions.world import CONFIG, SUM
from tests.scripted_lm import Messages, ScriptedLM

SETTINGS = LabelSettings(attempts=12, labelled=3, rollouts=8, most=32, max_tokens=100, chunk=3)


def searched(steps: int, answers: Any) -> tuple[tuple[float | None, ...], list[int]]:
    """The labels of a search whose boundaries are bad as `answers` says, and what it asked for."""
    search, asked = bisect(steps), list[int]()
    try:
        place = next(search)
        while True:
            asked.append(place)
            place = search.send(answers(place))
    except StopIteration as done:
        return done.value, asked


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12])
def test_halving_finds_every_place_and_looks_at_its_neighbours(steps: int) -> None:
    for error in range(steps):
        labels, asked = searched(steps, lambda place, error=error: place > error)
        assert labels == (1.0,) * error + (0.0,) + (None,) * (steps - error - 1)
        assert len(asked) == len(set(asked)) <= (steps - 1).bit_length() + 2
        assert {place for place in (error - 1, error, error + 1, error + 2) if 0 < place < steps} <= set(asked)


def test_what_is_undecided_or_contradicted_has_no_label() -> None:
    labels, asked = searched(8, lambda place: None if place == 6 else False)
    assert labels == (1.0,) * 4 + (None,) * 4
    assert asked == [4, 6]
    recovered, _ = searched(8, lambda place: place == 4)  # bad behind four steps, right again behind five
    assert recovered == (None,) * 8
    unsure, _ = searched(
        8, lambda place: None if place == 5 else place > 3
    )  # an undecided neighbour contradicts nothing
    assert unsure == (1.0, 1.0, 1.0, 0.0, None, None, None, None)


def test_a_boundary_is_decided_against_half_of_the_rate_at_the_start() -> None:
    assert is_bad(0, 16, (6, 8), 0.1) is True
    assert is_bad(7, 8, (6, 8), 0.1) is False
    assert is_bad(2, 8, (2, 8), 0.1) is None
    assert is_bad(8, 32, (1, 8), 0.1) is False  # a quarter is no less than half of an eighth
    assert is_bad(0, 8, (1, 8), 0.1) is None  # where the start is seldom right, eight failures say little
    order = [is_bad(right, 32, (16, 32), 0.1) for right in range(33)]
    assert order[0] is True
    assert order[32] is False
    assert order == sorted(order, key=[True, None, False].index)


def test_labels_of_every_step() -> None:
    rates = [0.5, 0.5, 0.3, None, 0.0, 0.0]
    assert every_step(rates, "hard", 0.8) == (1.0, 1.0, None, 0.0, 0.0)
    assert every_step(rates, "soft", 0.8) == (0.5, 0.3, None, 0.0, 0.0)
    assert every_step(rates, "progress", 0.8) == (1.0, 0.0, None, None, None)


def slip(steps: tuple[str, ...]) -> int | None:
    """The first sum that is wrong."""
    sums = [tuple(map(int, SUM.findall(step)[0])) for step in steps[:-1]]
    return next((i for i, (a, b, c) in enumerate(sums) if a + b != c), None)


def run(out: Path, *, weak: Any = None, n: int = 6, check: Any = (), **settings: Any) -> list[LabelledAttempt]:
    writers = world.writers(weak or ScriptedBackend(world.written, "weak"))
    path = label_steps(
        world.problems(n), CONFIG, out, settings=SETTINGS.model_copy(update=settings), writers=writers, check=check
    )
    assert path == out / "labels.jsonl"
    return read_attempts(out)


def test_rollouts_find_the_slips_and_what_they_cost_is_counted(tmp_path: Path) -> None:
    backend = ScriptedBackend(world.written, "weak")
    rows = run(tmp_path / "run", weak=backend)
    wrong = [row for row in rows if not row.right and not row.note]
    assert len(wrong) >= 8
    for row in wrong:
        assert row.labels.index(0.0) == slip(row.steps)
        assert all(judged <= 32 for _, _, judged in row.tried)
    assert all(row.labels == (1.0,) * 4 for row in rows if row.right and not row.note)
    counts = json.loads((tmp_path / "run" / COST).read_text())
    spent = [sample for r in backend.requests for sample in range(r.n)]
    assert counts["generated tokens"] == tokens_of([tmp_path / "run"]) == sum(r.usage.generated_tokens for r in rows)
    assert sum(row.usage.calls for row in rows) == len(spent)
    found = load_step_labels(tmp_path / "run")
    assert sum(s.first_error is not None for s in found) == len({(r.question, r.steps) for r in wrong})
    assert {s.source for s in found} == {"rollouts"}


def test_a_problem_that_is_never_solved_gives_no_label_and_no_rollouts(tmp_path: Path) -> None:
    def hopeless(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        return "\n\n".join(world.solution(problem, prefix, 1))

    backend = ScriptedBackend(hopeless, "weak")
    rows = run(tmp_path / "run", weak=backend)
    assert {row.note for row in rows} == {"never solved from the start"}
    assert {request.prefix for request in backend.requests} == {()}
    assert load_step_labels(tmp_path / "run") == []


def test_the_critic_labels_a_problem_that_is_never_solved_too(tmp_path: Path) -> None:
    def hopeless(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        return "\n\n".join(world.solution(problem, prefix, 1))

    rows = run(tmp_path / "run", weak=ScriptedBackend(hopeless, "weak"), by="critic")
    assert {row.start[0] for row in rows} == {0}
    assert all(row.critic.index(0.0) == slip(row.steps) for row in rows)
    assert len(load_step_labels(tmp_path / "run")) == len({(row.question, row.steps) for row in rows}) > 0


@pytest.mark.parametrize("label", ["hard", "soft", "progress"])
def test_every_boundary_is_asked_at_for_the_other_labels(tmp_path: Path, label: str) -> None:
    rows = run(tmp_path / label, label=label)
    asked = [row for row in rows if row.note != "never solved from the start"]
    assert all([place for place, *_ in row.tried] == [1, 2, 3] for row in asked)
    wrong = [row for row in asked if not row.right]
    for row in wrong:
        place = slip(row.steps)
        assert place is not None
        assert row.labels[place] == 0.0
        assert all(label is None or label > 0 for label in row.labels[:place])
        assert row.labels[-1] == (None if label == "progress" else 0.0)
    assert any(not row.right for row in asked)


class Stopping(ScriptedBackend):
    """Ctrl-C at one of its calls."""

    def __init__(self, at: int) -> None:
        super().__init__(world.written, "weak")
        self.at = at

    def continue_solutions(self, requests: Any) -> list[Completion]:
        if len(self.batches) == self.at:
            self.at = -1
            raise KeyboardInterrupt
        return super().continue_solutions(requests)


def found(rows: list[LabelledAttempt]) -> list[tuple[Any, ...]]:
    """All but what was read from a cache."""
    return [(row.id, row.steps, row.start, row.tried, row.labels, row.usage.generated_tokens) for row in rows]


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole, calls = run(tmp_path / "whole"), ScriptedBackend(world.written, "weak")
    run(tmp_path / "again", weak=calls)
    for at in (3, len(calls.batches) - 3):
        backend, out = Stopping(at), tmp_path / f"{at}"
        with pytest.raises(KeyboardInterrupt):
            run(out, weak=backend)
        assert (len(read_attempts(out)) > 0) == (at > 3)
        assert found(run(out, weak=backend)) == found(whole)


def critic(error: int = 0) -> ErrorLocalizer:
    """Names the first wrong sum, or a step so many further on."""

    def reply(messages: Messages) -> str:
        sums = [(int(a), int(b), int(c)) for a, b, c in SUM.findall(messages[-1]["content"])]
        first = next((i for i, (a, b, c) in enumerate(sums) if a + b != c), None)
        return verified(None if first is None else first + error, steps=4)

    lm = ScriptedLM(reply, "critic")
    lm.kwargs["max_tokens"] = 64
    return ErrorLocalizer(lm)


@pytest.mark.parametrize("error", [0, 1])
def test_rollouts_and_critic_filter_one_another(tmp_path: Path, error: int) -> None:
    weak, proposer = ScriptedBackend(world.written, "weak"), world.writers().proposer
    writers = Writers(CONFIG, weak=weak, localizer=critic(error), proposer=proposer)
    settings = SETTINGS.model_copy(update={"by": "both"})
    label_steps(world.problems(6), CONFIG, tmp_path, settings=settings, writers=writers)
    counts = json.loads((tmp_path / COST).read_text())
    both = counts["first errors by both"]
    assert both >= 8
    assert counts["of these on another step"] == (both if error else 0)
    assert any(s.first_error is not None for s in load_step_labels(tmp_path)) is not bool(error)
    assert any(s.first_error is None for s in load_step_labels(tmp_path))


def test_the_critic_alone_asks_for_no_rollouts_from_boundaries(tmp_path: Path) -> None:
    backend = ScriptedBackend(world.written, "weak")
    rows = run(tmp_path / "run", weak=backend, by="critic")
    assert {request.prefix for request in backend.requests} == {()}
    wrong = [row for row in rows if not row.right and not row.note]
    assert wrong
    assert all(row.critic.index(0.0) == slip(row.steps) for row in wrong)


def test_rollouts_are_checked_on_labels_of_people_first(tmp_path: Path) -> None:
    rng, check = random.Random(0), []
    for problem in world.problems(5):
        steps = world.solution(problem, (), rng.choice((1, 2)))
        first = slip(tuple(steps))
        assert first is not None
        named = first if problem.id != "p0" else first - 1  # a slip of the person's
        check.append((problem, LabelledSolution.of_first_error(problem.question, steps, named)))
    check.append((problem, LabelledSolution.of(problem.question, steps, [None, 0.0, None, None])))  # not complete
    rows = run(tmp_path / "run", check=check)
    people = [row for row in rows if row.people]
    assert rows[: len(people)] == people
    assert [row.id for row in people] == [f"check/p{i}/p0" for i in range(5)]
    counts = json.loads((tmp_path / "run" / COST).read_text())
    solved = [row for row in people if not row.note]
    assert counts["checked against people"] == 5
    assert counts["first errors found by rollouts, by the critic"] == [len(solved), 0]
    assert counts["of these the step that people named"] == [sum(row.id != "check/p0/p0" for row in solved), 0]
    texts = {(s.question, s.steps) for s in load_step_labels(tmp_path / "run")}
    own = Counter((row.question, row.steps) for row in rows if not row.people)
    assert texts <= set(own)
    assert re.match("Add", rows[0].question)
