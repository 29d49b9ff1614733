"""What DSPy hears of: every call, repairs included, in history, usage, callbacks and traces. Modules keep nothing."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

import stepwise as sw
from stepwise import ErrorLocalizer, InterventionProposer, StepJudge
from stepwise.models.shared import close_engines
from tests.critics.critic import UNREADABLE, judged, proposed, reviewed, verified, wanted
from tests.scripted_lm import Messages, ScriptedLM

ATTEMPT = {"problem": "How many are left?", "steps": ["There are 41.", "41 - 4 = 39.", "So 39."]}
FOUND = {**ATTEMPT, "first_error": 1, "reference": "41 - 4 = 37", "answer": "37"}


def halting(messages: Messages) -> str:
    """Compact replies to every signature, but nothing that can be read before it is asked again."""
    if not messages[-1]["content"].startswith("That cannot be read"):
        return UNREADABLE
    match wanted(messages[-3]["content"]):
        case ["checks", *_]:
            return verified(1)
        case ["reason", "right"]:
            return judged(False)
        case ["location", "content"]:
            return proposed(1, "41 - 4 = 37.")
        case ["solution"]:
            return "#solution: 41 - 4 = 37"
        case _:
            return reviewed()


# each call is repaired once
CASES: list[tuple[Any, dict[str, Any], int]] = [
    (lambda: ErrorLocalizer(), ATTEMPT, 2),
    (lambda: ErrorLocalizer(method="vote", samples=4), ATTEMPT, 8),
    (lambda: ErrorLocalizer(method="bisect"), ATTEMPT, 4),
    (lambda: StepJudge(), ATTEMPT, 2),
    (lambda: InterventionProposer(candidates=2, solve_first=True, revisions=1), FOUND, 12),
]


class Heard(BaseCallback):  # type: ignore[misc]
    """Counts what DSPy's callbacks are told of."""

    def __init__(self) -> None:
        self.events: dict[str, int] = {}
        self.lock = threading.Lock()

    def _count(self, name: str) -> None:
        with self.lock:
            self.events[name] = self.events.get(name, 0) + 1

    def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self._count(type(instance).__name__)

    def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self._count("lm")

    def on_lm_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self._count("lm answered" if exception is None else "lm failed")

    def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
        self._count("read" if exception is None else "unread")


@pytest.mark.parametrize(("make", "inputs", "calls"), CASES)
def test_history_usage_and_callbacks_have_every_call_repairs_included(make: Any, inputs: Any, calls: int) -> None:
    lm, heard, module = ScriptedLM(halting), Heard(), make()
    with dspy.context(lm=lm, callbacks=[heard]), dspy.track_usage() as tracker:
        found = module(**inputs)
    assert found.failure is None
    assert len(lm.calls) == calls == found.usage.calls == len(lm.history) == len(module.history)
    assert len(found.repairs) == calls // 2
    told = tracker.get_total_tokens()["scripted"]
    assert (told["prompt_tokens"], told["completion_tokens"]) == (
        found.usage.prompt_tokens,
        found.usage.generated_tokens,
    )
    assert heard.events == {
        type(module).__name__: 1, "Predictor": calls // 2, "lm": calls, "lm answered": calls,
        "read": calls // 2, "unread": calls // 2,
    }  # fmt: skip
    own, alike = Heard(), type(module)(callbacks=[heard])  # as every module of DSPy takes them
    assert alike.callbacks == [heard]
    alike.callbacks = [own]
    with dspy.context(lm=ScriptedLM(halting)):
        alike(**inputs)
    assert own.events == {type(module).__name__: 1}
    shown = io.StringIO()
    module.inspect_history(n=calls, file=shown)
    assert shown.getvalue().count(UNREADABLE) == calls  # as a reply, and in the repair that shows it
    with dspy.context(lm=ScriptedLM(halting), track_usage=True):
        usage = make()(**inputs).get_lm_usage()["scripted"]
    assert usage["completion_tokens"] == found.usage.generated_tokens


def test_the_trace_has_the_calls_that_were_read_and_where_there_is_no_result_those_that_were_not() -> None:
    for replies, read, unread in [([UNREADABLE] * 4, 0, 2), ([verified(1)] * 2, 2, 0)]:
        with dspy.context(lm=ScriptedLM(replies), trace=(trace := [])):
            module = ErrorLocalizer(method="vote", samples=2)
            module(**ATTEMPT)
        assert [step[0] for step in trace] == [module.verify] * 2
        assert sum("first_error" in step[2] for step in trace) == read
        assert sum(UNREADABLE in step[2].get("unreadable", "") for step in trace) == unread


@pytest.mark.parametrize(("make", "inputs", "calls"), CASES)
def test_modules_keep_nothing_between_calls(make: Any, inputs: Any, calls: int) -> None:
    module = make()

    def state() -> dict[str, Any]:
        """All but DSPy's own history."""
        own = {name: value for name, value in vars(module).items() if name != "history"}
        return own | {name: {**vars(part), "history": []} for name, part in module.named_parameters()}

    before = {name: dict(value) if isinstance(value, dict) else value for name, value in state().items()}
    with dspy.context(lm=ScriptedLM(halting)):
        first = module(**inputs)
        assert state() == before
        run = dspy.Parallel(num_threads=4, disable_progress_bar=True)
        assert run([(module, inputs)] * 8) == [first] * 8
    assert state() == before


@pytest.fixture
def _own_cache(tmp_path: Path) -> Iterator[None]:
    before = dspy.cache
    dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=True, disk_cache_dir=str(tmp_path / "cache"))
    yield
    dspy.cache = before
    close_engines()


@pytest.mark.usefixtures("_own_cache")
def test_n_samples_are_n_calls_and_asked_again_they_come_from_the_cache(tiny_gguf_path: Path) -> None:
    lm = sw.lm(f"llamacpp/{tiny_gguf_path}", context=2048, sequences=4, max_tokens=250)
    given = {"problem": "?", "steps": ["a"]}
    for module, inputs in [
        (ErrorLocalizer(lm, "vote", samples=4), given),
        (InterventionProposer(lm, solve_first=False, revisions=0, candidates=4), {**given, "first_error": 0}),
    ]:
        first = module(**inputs)
        assert first.usage.calls == 4 + len(first.repairs)
        replies = {entry["outputs"][0] for entry in module.history}
        assert len(replies) == len(module.history)
        again = module(**inputs)
        assert (again.usage.calls, again.usage.generated_tokens) == (0, 0)
        assert {name: value for name, value in again.items() if name != "usage"} == {
            name: value for name, value in first.items() if name != "usage"
        }


def test_mlflow_traces_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is no dependency; install it to see it trace")
    monkeypatch.chdir(tmp_path)  # where it puts its files
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.dspy.autolog()
    try:
        with dspy.context(lm=ScriptedLM(halting)):
            ErrorLocalizer(method="vote", samples=2)(**ATTEMPT)
        mlflow.flush_trace_async_logging()
        (trace,) = mlflow.search_traces(return_type="list")
        kinds = [span.span_type for span in trace.data.spans]
        assert kinds.count("CHAT_MODEL") == 4
        assert sum(UNREADABLE in str(span.outputs) for span in trace.data.spans) >= 2
    finally:
        mlflow.dspy.autolog(disable=True)
