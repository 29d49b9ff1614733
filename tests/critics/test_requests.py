"""Calls of DSPy as requests: caps, the store and usage apply to each of them, once, and each says what it is about."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy import lm15

from stepwise.config import BudgetConfig
from stepwise.critics import ErrorLocalizer, ask_all
from stepwise.critics.formats import adapter
from stepwise.errors import BackendError, BudgetExceededError
from stepwise.models.base import Completion, Request
from stepwise.models.budget import Ledger
from stepwise.models.litellm_handler import import_litellm
from stepwise.models.store import CallCache
from stepwise.models.wrapped import Wrapped
from stepwise.models.wrappers import Wrappers
from stepwise.types import Problem
from tests.critics.critic import UNREADABLE, MeasuredLM, verified
from tests.fakes import ScriptedScorer
from tests.scorers.stand_in import in_turn, serving
from tests.scorers.test_judge import chat_answer
from tests.scripted_lm import Messages, ScriptedLM

PROBLEMS = [Problem(f"p{i}", f"How many are {i} and {i}?") for i in range(4)]
ITEMS = [{"problem": problem, "steps": ["There are 41.", "41 - 4 = 39.", "So 39."]} for problem in PROBLEMS]


def repaired(messages: Messages) -> str:
    """Nothing that can be read before it is asked again."""
    return verified(1) if messages[-1]["content"].startswith("That cannot be read") else UNREADABLE


def asked(module: Any, around: Wrappers | None, items: list[Any] = ITEMS) -> list[dspy.Prediction]:
    return ask_all(module, items, range(len(items)), label="locating", concurrency=2, around=around)


class Seen(Wrappers):
    """Wrappers that note every request."""

    def model(self, model: Any, role: str) -> Any:
        inner, requests = super().model(model, role), self.requests  # type: ignore[attr-defined]

        class Noted(Wrapped):
            async def generate(self, request: Request) -> Completion:
                requests.append(request)
                return await super().generate(request)

        return Noted(inner)


def test_every_call_is_a_request_that_says_what_it_is_about() -> None:
    around = Seen(Ledger(), run="a run")
    object.__setattr__(around, "requests", [])
    asked(ErrorLocalizer(ScriptedLM(repaired), "vote", samples=2), around)
    requests: list[Request] = around.requests  # type: ignore[attr-defined]
    assert len(requests) == 4 * 2 * 2
    assert {(r.run, r.role, r.step, r.problem.id, r.seed, r.sample) for r in requests} == {
        ("a run", "critic", 3, f"p{i}", i, sample) for i in range(4) for sample in range(2)
    }
    assert all(r.messages and not r.token_ids for r in requests)


def test_what_it_cost_is_counted_once_by_ledger_prediction_and_tracker() -> None:
    ledger, lm = Ledger(), ScriptedLM(repaired)
    with dspy.track_usage() as tracker:
        found = asked(ErrorLocalizer(lm), Wrappers(ledger))
    plain = asked(ErrorLocalizer(ScriptedLM(repaired)), None)
    assert found == plain  # usage is a part of them
    usage = sum((one.usage for one in found), start=found[0].usage.__class__())
    assert ledger.usage("critic").calls == usage.calls == len(lm.calls) == 8
    assert ledger.usage("critic").generated_tokens == usage.generated_tokens
    assert tracker.get_total_tokens()["scripted"]["completion_tokens"] == usage.generated_tokens


def test_a_cap_refuses_the_call_that_would_pass_it_and_no_call_before() -> None:
    lm = MeasuredLM(lambda _: verified(1), seconds=0.01)
    lm.kwargs["max_tokens"] = 50
    ledger = Ledger(BudgetConfig(total_tokens=100))
    with pytest.raises(BudgetExceededError, match="critic asks for up to 50"):
        asked(ErrorLocalizer(lm), Wrappers(ledger))
    one = len(verified(1).split())
    assert ledger.usage().generated_tokens == len(lm.calls) * one <= 100
    assert len(lm.calls) == (100 - 50) // one + 1


def test_a_cap_on_a_scorer_stops_it_too() -> None:
    localizer = ErrorLocalizer(method="scorer", scorer=ScriptedScorer({}))
    with pytest.raises(BudgetExceededError, match=r"budget\.money"):
        asked(localizer, Wrappers(Ledger(BudgetConfig(money=0.0001), {"scorer": (1.0, 1.0)})))


def test_answers_are_on_disk_when_they_arrive_and_free_when_they_are_asked_for_again(tmp_path: Path) -> None:
    path, stop = tmp_path / "answers.jsonl", 5

    def dying(messages: Messages) -> str:
        if len(lm.calls) > stop:
            raise SystemExit  # as Ctrl-C does
        return repaired(messages)

    lm = ScriptedLM(dying)
    with CallCache(path, replays_are_free=True) as store, pytest.raises(BaseException):  # noqa: B017, PT011
        asked(ErrorLocalizer(lm), Wrappers(Ledger(), store=store))
    later, ledger = ScriptedLM(repaired), Ledger()
    with CallCache(path, replays_are_free=True) as store:
        assert 1 <= len(store.unanswered) <= 2  # what was in flight was perhaps billed
        found = asked(ErrorLocalizer(later), Wrappers(ledger, store=store))
    assert found == asked(ErrorLocalizer(ScriptedLM(repaired)), None)
    assert 8 - stop <= len(later.calls) == ledger.usage().calls <= 8 - stop + 1  # one may have been in flight


def test_the_synchronous_side_goes_the_same_way() -> None:
    class Program(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.localizer = ErrorLocalizer(ScriptedLM(repaired))

        def forward(self, **item: Any) -> dspy.Prediction:
            return self.localizer(**item)

    ledger = Ledger()
    found = asked(Program(), Wrappers(ledger))
    assert [one.first_error for one in found] == [1] * 4
    assert ledger.usage("critic").calls == 8


def _asked_directly(module: Any) -> Any:
    return module(**ITEMS[0])


def _awaited(module: Any) -> Any:
    return asyncio.run(module.acall(**ITEMS[0]))


def _asked_with_others(module: Any) -> Any:
    return asked(module, Wrappers(Ledger()), ITEMS[:1])


@pytest.mark.parametrize("ask", [_asked_with_others, _asked_directly, _awaited])
@pytest.mark.parametrize("fault", ["drips", "huge"])
def test_a_hosted_critic_has_the_bounds_of_every_other_call(fault: str, ask: Callable[[Any], Any]) -> None:
    import_litellm()  # takes long the first time

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            size = 1 << 30 if fault == "huge" else 600
            self.send_header("Content-Length", str(size))
            self.end_headers()
            with suppress(OSError):
                for _ in range(600):  # a megabyte at once, or a byte each tenth of a second
                    self.wfile.write(b" " * (1 << 20) if fault == "huge" else b" ")
                    self.wfile.flush()
                    sent.append(1)
                    time.sleep(0 if fault == "huge" else 0.1)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    sent: list[int] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    lm = dspy.LM("openai/m", api_base=f"http://127.0.0.1:{server.server_port}/v1", api_key="k", engine="litellm",
                 num_retries=0, cache=False, timeout=1.0)  # fmt: skip
    began = time.monotonic()
    with pytest.raises((BackendError, dspy.LMError), match=r"timed out|Timeout|[Cc]onnection ?[Ee]rror"):
        ask(ErrorLocalizer(lm, adapter="compact"))
    server.shutdown()
    server.server_close()
    assert time.monotonic() - began < 30  # sixty seconds of drips
    assert len(sent) < 200  # of 600 MB


def test_a_hosted_critics_answer_is_found_again_in_dspys_cache() -> None:
    with serving(in_turn(chat_answer(verified(1)))) as server:
        lm = dspy.LM(f"openai/{uuid.uuid4().hex}", api_base=f"{server.url}/v1", api_key="k", engine="litellm")
        module = ErrorLocalizer(lm, adapter="compact")
        found = [ask(module).first_error for ask in (_asked_directly, _asked_directly, _awaited)]
        assert (found, len(server.requests)) == ([1] * 3, 1)
    with serving(in_turn(chat_answer(verified(0)))) as other:  # another server behind the same name is asked
        lm = lm.copy(api_base=f"{other.url}/v1")
        assert _asked_directly(ErrorLocalizer(lm, adapter="compact")).first_error == 0


class _Engine:
    """An engine of DSPy's own: it answers each request, and notes it."""

    supports_response_schema = True
    supported_params = frozenset({"response_format"})

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def acomplete(self, request: Any) -> Any:
        return self.complete(request)

    def complete(self, request: Any) -> Any:
        self.requests.append(request)
        text = lm15.Message.assistant([lm15.TextPart(verified(1))])
        return lm15.Response(id=None, model=request.model, message=text, finish_reason="stop",
                             usage=lm15.Usage(input_tokens=9, output_tokens=4))  # fmt: skip


class _Canonical(type(adapter("compact"))):  # type: ignore[misc]
    """A format that asks as DSPy 3.5 has announced: by a `Request`, for a `Response`."""

    def _asked(self, lm: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        texts = [lm15.Message.user(part["content"]) for part in self.format(signature, demos, inputs)]
        config = lm15.Config(max_tokens=77, temperature=0.25)
        return lm15.Request(model=lm.model, messages=tuple(texts), config=config)

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        return [self.parse(signature, lm(self._asked(lm, signature, demos, inputs)).message.text)]

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        return [self.parse(signature, (await lm.acall(self._asked(lm, signature, demos, inputs))).message.text)]


def test_calls_in_the_form_of_dspy_3_5_are_requests_too() -> None:
    engine, ledger, cache = _Engine(), Ledger(), CallCache()
    waiting = SimpleNamespace(complete=engine.acomplete, supports_response_schema=True)
    lm = dspy.LM("own/m", engine=engine, async_engine=waiting, cache=False)
    for _ in range(2):
        around = Seen(ledger, store=cache, run="a run")
        object.__setattr__(around, "requests", requests := [])
        results = asked(ErrorLocalizer(lm, adapter=_Canonical()), around, ITEMS[:1])
        assert results[0].first_error == 1
        assert (requests[0].max_tokens, requests[0].temperature) == (77, 0.25)
    assert len(engine.requests) == 1  # the second answer was stored
