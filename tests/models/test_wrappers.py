"""Wrappers of a model: each one concern, and the two orders in which they are put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwise.config import BudgetConfig
from stepwise.errors import BackendError
from stepwise.models.base import Completion, Generator, Request
from stepwise.models.budget import Ledger
from stepwise.models.driver import Driver
from stepwise.models.store import CallCache
from stepwise.models.wrappers import Guarded, Wrappers
from stepwise.types import Failure, FailureKind, Problem, Usage
from tests.fakes import ScriptedBackend

P = Problem("p", "How many?", "4")


class Failing(ScriptedBackend):
    """Fails as the plan says, one entry a request ("" for an answer), and counts what reached it."""

    def __init__(self, *plan: FailureKind | str):
        super().__init__(lambda *_: "some text")
        self.plan, self.asked = list(plan), 0

    async def generate(self, request: Request) -> Completion:
        kind = self.plan[self.asked]
        self.asked += 1
        if not kind:
            return await super().generate(request)
        return Completion.of_failure(Failure(kind, f"it is {kind}"), n=request.n)  # type: ignore[arg-type]


def ask(model: Generator, *requests: Request) -> list[Completion]:
    return Driver().run([model.generate(request) for request in requests], window=1)


def test_a_refused_request_costs_itself_alone() -> None:
    results = ask(Guarded(Failing("refused", "", "refused", "refused", "refused", "")), *[Request(P)] * 6)
    assert [result.failed and result.failed.kind for result in results] == [
        "refused", None, "refused", "refused", "refused", None,
    ]  # fmt: skip


def test_requests_that_fail_for_a_while_cost_themselves_and_three_in_a_row_say_that_the_model_is_gone() -> None:
    model = Failing("again", "again", "", "again", "again", "again", "")
    guarded = Guarded(model)
    assert [bool(result.failed) for result in ask(guarded, *[Request(P)] * 5)] == [True, True, False, True, True]
    for _ in range(2):
        with pytest.raises(BackendError, match="it is again"):
            ask(guarded, Request(P))
    assert model.asked == 6  # once it is gone nobody asks it again


def test_a_model_that_is_gone_stops_at_once() -> None:
    model = Failing("gone", "")
    with pytest.raises(BackendError, match="it is gone"):
        ask(Guarded(model), Request(P), Request(P))
    assert model.asked == 1


@pytest.mark.parametrize("kinds", [("gone",), ("again", "again", "again")])
def test_what_the_reply_that_ended_the_run_cost_is_on_the_bill(kinds: tuple[str, ...]) -> None:
    ledger, model = Ledger(), Failing(*kinds)
    billed, perhaps = Usage("m", 1, 20, 20, 7), Usage("m", 1, 20, 20, 10)

    async def failing(request: Request) -> Completion:
        failure = (await Failing.generate(model, request)).failed
        return Completion.of_failure(failure, billed, n=request.n, perhaps=perhaps)

    model.generate = failing  # type: ignore[method-assign]
    with pytest.raises(BackendError):
        ask(Wrappers(ledger).model(model, "weak"), *[Request(P)] * len(kinds))
    assert ledger.usage("weak").generated_tokens == 7 * len(kinds)
    assert ledger.perhaps("weak").generated_tokens == 10 * len(kinds)


def test_a_cap_is_a_completion_that_says_so_and_reaches_nobody() -> None:
    model, ledger = Failing("", ""), Ledger(BudgetConfig(strong_tokens=9))
    capped = Wrappers(ledger).model(model, "strong")
    (result,) = ask(capped, Request(P, max_tokens=10, n=2))
    assert (result.finish, [sample.finish for sample in result.samples]) == ("budget", ["budget"] * 2)
    assert result.failed == Failure("budget", result.error, "budget.strong_tokens")
    assert model.asked == 0


def test_a_stored_answer_is_free_in_a_resumed_run_and_charged_in_a_comparison(tmp_path: Path) -> None:
    path, request = tmp_path / "answers.jsonl", Request(P, max_tokens=10)

    def spent(*, resumed: bool) -> tuple[int, int]:
        """Tokens on the bill, and requests that reached the model."""
        model, ledger = ScriptedBackend(lambda *_: "some text"), Ledger()
        with CallCache(path, replays_are_free=resumed) as store:
            ask(Wrappers(ledger, store=store).model(model, "weak"), request, request)
        return ledger.usage("weak").generated_tokens, len(model.requests)

    assert spent(resumed=False) == (6, 1)  # the second is charged as if it were alone, and found
    assert spent(resumed=False) == (6, 0)
    assert spent(resumed=True) == (0, 0)
