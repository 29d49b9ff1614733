"""What can only mean one thing is taken as meant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import stepwise as sw
from stepwise.models.scorers.load import ConstantScorer
from tests.test_mistakes import STRONG, TRACE, WEAK, P, critic, router, saved

WORKS: dict[str, tuple[Callable[[], Any], Any]] = {
    "a question": (lambda: router()("What is 2 + 2?").answer, "4"),
    "a problem of the lab": (lambda: router()(sw.lab.generate("test", 1)[0]).answer, "4"),
    "a row": (lambda: router().solve_all([{"question": "2 + 2?", "answer": "4"}], progress=False)[0].answer, "4"),
    "a CSV": (lambda: router().solve_all(saved("question,answer\n2 + 2?,4\n", "f.csv"), progress=False)[0].answer, "4"),
    "a policy's class": (lambda: router(sw.Threshold).policy, sw.Threshold()),
    "a policy's fields": (lambda: router({"policy": "threshold", "threshold": 0.3}).policy, sw.Threshold(0.3)),
    "a policy's name": (lambda: router().with_policy("always").policy.name, "always"),
    "one policy to compare": (
        lambda: [row.family for row in sw.compare(router(), "never", [P], progress=False)],
        ["never"],
    ),
    "caps": (lambda: router(budget={"strong_tokens": 5}).budget.strong_tokens, 5),
    "caps of a ledger": (lambda: sw.Ledger({"calls": 5}).remaining()["calls"], 5),
    "a model's fields": (lambda: sw.load_backend({"model": WEAK, "context": 128}).name[:8], "lab-weak"),
    "a model's name in a section": (lambda: sw.Config(models={"weak": STRONG}).models.weak.model, STRONG),
    "one override": (lambda: sw.Config.load(None, "seed=3").seed, 3),
    "a number without its 0": (lambda: sw.Config.load(None, "routing.threshold=.25").routing.threshold, 0.25),
    "a file for Config": (
        lambda: sw.StepRouter.from_config(saved('[routing]\npolicy = "never"\n')).policy.name,
        "never",
    ),
    "one request": (lambda: len(sw.load_backend(WEAK).continue_solutions(sw.Request(P))), 1),
    "one trace": (lambda: router().cost(TRACE).problems, 1),
    "a trace to score": (lambda: ConstantScorer(0.5).score(P, TRACE), [0.5, 0.5]),
    "a solution to score": (lambda: ConstantScorer(0.5).score(P, TRACE.text), [0.5, 0.5]),
    "a trace to check": (lambda: critic()(problem=P, steps=TRACE).first_error, None),
    "a running loop": (lambda: asyncio.run(in_a_loop()), ("4", "4")),
}


async def in_a_loop() -> tuple[str | None, str | None]:
    return router()(P).answer, (await router().acall(problem=P)).answer


@pytest.mark.parametrize("name", WORKS)
def test_what_can_only_mean_one_thing_works(name: str) -> None:
    call, result = WORKS[name]
    assert call() == result
