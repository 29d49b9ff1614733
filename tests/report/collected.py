"""A small collection written by hand, in which every fate occurs; no model had a part in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stepwise.data.examples import Example
from stepwise.interventions.checks.leaks import LeakVerdict
from stepwise.interventions.rows import ROWS, Candidate, FailedAttempt, GuidedRollout, Located, Made, Rollout
from stepwise.io import append_rows
from stepwise.types import Problem, Usage

MADE = Made("weak-model@1", "p", "c", 7)
CRITIC = Made("critic-model@2", "p", "c", 7)
STEPS = ("There are 2 boxes of 6.", "2 * 6 = 14.", r"So \boxed{14}.")
REPAIR = "Two boxes of six are 2 * 6 = 12."


def problem(name: str) -> Problem:
    return Problem(
        id=name, question=f"How many pens are in 2 boxes of 6, asked as {name}?", answer="12", reference="Six and six."
    )


def rollout(name: str, verdict: str | None, text: str = "\n\n".join(STEPS), **more: Any) -> Rollout:
    owner, sample = name.split("/r")
    finish = "error" if verdict is None else "answer"
    return Rollout(name, owner, int(sample), text, finish, MADE, Usage("w", 1, 9, 9, 30), verdict=verdict, **more)


def failure(name: str, copies: int = 1, steps: tuple[str, ...] = STEPS, answer: str | None = "14") -> FailedAttempt:
    verdict = "WRONG" if answer else "NO_ANSWER"
    return FailedAttempt(name, name.split("/")[0], steps, answer, verdict, copies)


def located(name: str, first: int | None, failed: str = "", reason: str = "six and six are twelve") -> Located:
    return Located(f"{name}/l", name.split("/")[0], name, first, CRITIC, reason=reason, failed=failed)


def candidate(name: str, content: str, leak: str | None = "clean", **more: Any) -> Candidate:
    owner = name.rpartition("/")[0]
    verdict = None if leak is None else LeakVerdict(leak)
    return Candidate(name, name.split("/")[0], owner, 1, content, CRITIC, leak=verdict, **more)


def guided(name: str, right: int, wrong: int) -> list[GuidedRollout]:
    ends = [("WRONG", r"Hm, so \boxed{13}.")] * wrong + [("CORRECT", r"Counted again: \boxed{12}.")] * right
    return [
        GuidedRollout(f"{name}/g{i}", name.split("/")[0], i, text, "answer", MADE, verdict=verdict, candidate=name)
        for i, (verdict, text) in enumerate(ends)
    ]


def example(name: str, right: int, tried: int) -> Example:
    owner, attempt = name.split("/")[0], name.rpartition("/")[0]
    about = problem(owner)
    parents = {"problem": owner, "failure": attempt, "candidate": name}
    return Example(
        name, about.question, "12", STEPS[:1], REPAIR, "intervention", parents, {}, "p", "c", 7, right, tried
    )


def rows() -> dict[str, list[Any]]:
    """Two problems; five failed attempts; candidates of every fate that the pipeline knows."""
    silent = (*STEPS[:2], "And so on.")
    return {
        "rollouts": [
            rollout("a/r0", "WRONG"), rollout("a/r1", "WRONG"), rollout("a/r2", "CORRECT", r"\boxed{12}"),
            rollout("a/r3", None, "", error="gone"), rollout("a/r4", "TIMEOUT", r"\boxed{x}"),
            rollout("a/r5", "NO_ANSWER", "\n\n".join(silent)), rollout("b/r0", "WRONG"), rollout("b/r1", "WRONG", "A"),
            rollout("b/r2", "WRONG", "B"), rollout("b/r3", "WRONG", "C"),
        ],
        "failures": [
            failure("a/r0", 2), failure("a/r5", 1, silent, None), failure("b/r0"), failure("b/r1", 1, ("A",)),
            failure("b/r2", 1, ("B",)),
        ],
        "located": [
            located("a/r0", 1), located("a/r5", 1), located("b/r0", 1), located("b/r1", None, reason=""),
            located("b/r2", None, "the reply could not be read"),
        ],
        "candidates": [
            candidate("a/r0/c0", REPAIR), candidate("a/r0/c1", "Weaker."), candidate("a/r0/c2", REPAIR),
            candidate("a/r5/c0", REPAIR), candidate("a/r5/c1", "Useless."),
            candidate("b/r0/c0", "The answer is 12.", "leak", leak_reason="says the answer", leak_text="answer is 12"),
            candidate("b/r0/c1", "So 12.", "answer_step"), candidate("b/r0/c2", "", None, failed="no JSON there"),
        ],
        "guided": [
            *guided("a/r0/c0", 3, 1), *guided("a/r0/c1", 1, 3), *guided("a/r5/c0", 4, 0), *guided("a/r5/c1", 0, 4),
        ],
        "examples": [example("a/r0/c0", 3, 4)],
    }  # fmt: skip


def write(out: Path, found: dict[str, list[Any]] | None = None, *, lab: bool = False, **arguments: Any) -> Path:
    """The directory as `collect` leaves it."""
    found = rows() if found is None else found
    for name in ROWS:
        append_rows(out / "chunks" / "00000" / f"{name}.jsonl", found.get(name, []))
    weak = "llamacpp/lab-weak" if lab else "openai/some-model"
    card = {
        "program": "collect",
        "config_hash": "abc123",
        "status": "finished",
        "arguments": {"rollouts": 6, "guided": 4, "keep": "best", "enough": None, "drop_after": None, **arguments},
        "config": {
            "models": {"weak": {"model": weak}, "strong": {"model": "llamacpp/lab-strong"}},
            "critic": {"candidates": 3},
        },
    }
    (out / "run.json").write_text(json.dumps(card))
    return out
