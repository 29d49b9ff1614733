"""DSPy hears of the calls that go through no dspy.LM: its callbacks, the histories of its modules, its usage tracker.

A callback gets what it gets of a dspy.LM, and `role` beside it:

    class Log(BaseCallback):
        def on_lm_start(self, call_id, instance, inputs):
            print(instance.role, instance.model, inputs["messages"][-1]["content"])

        def on_lm_end(self, call_id, outputs, exception=None):
            print(outputs)  # the texts, or of a scorer the scores as one text; None after an exception

As everywhere in DSPy, one that raises is a warning in the log.
"""

from __future__ import annotations

import datetime
import logging
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from stepwise.types import Usage

T = TypeVar("T")
Callbacks = Callable[[], Iterable[Any]]
"""What gives DSPy's callbacks, asked at each call."""
HISTORY = 100
"""Most calls of these in each of DSPy's histories; `dspy.configure(disable_history=True)` keeps none."""
_log = logging.getLogger(__package__)
_trimming = threading.Lock()


class CalledModel:
    """The `instance` of a call: what a dspy.LM says of itself, and the `role` ("weak", "strong", "scorer", ...).

    `history` has an entry once the call has ended.

    >>> CalledModel("llamacpp/lab-weak", "weak", {"temperature": 0.7}).history
    []
    """

    def __init__(self, model: str, role: str, kwargs: dict[str, Any]) -> None:
        self.model, self.role, self.kwargs = model, role, kwargs
        self.model_type, self.cache = "chat", False
        self.callbacks: list[Any] = []
        self.history: list[dict[str, Any]] = []


class Said(NamedTuple):
    """What a call gave: its texts, what it cost, why it gave nothing, and what was perhaps billed beside that.

    >>> Said(["So 3."], Usage("lab-weak", 1, 20, 20, 4)).outputs
    ['So 3.']
    """

    outputs: list[str]
    usage: Usage
    failure: BaseException | None = None
    perhaps: Usage | None = None


async def reported(
    instance: CalledModel,
    messages: Sequence[Any],
    callbacks: Callbacks,
    work: Callable[[], Awaitable[T]],
    read: Callable[[T], Said],
) -> T:
    """The result of `work`, which `read` makes into what DSPy hears of it.

    Example:
        model = CalledModel("llamacpp/lab-weak", "weak", {"temperature": 0.7})
        completion = await reported(model, messages, lambda: callbacks, lambda: weak.generate(request), read)
    """
    import dspy

    call_id, listeners = uuid.uuid4().hex, [*(dspy.settings.get("callbacks") or ()), *callbacks()]
    inputs = {"prompt": None, "messages": list(messages), "kwargs": {**instance.kwargs, "role": instance.role}}
    _tell(listeners, "on_lm_start", call_id=call_id, instance=instance, inputs=inputs)
    said = Said([], Usage())
    try:
        result = await work()
        said = read(result)
    except BaseException as error:
        said = Said([], Usage(), error)
        raise
    finally:
        outputs = said.outputs if said.failure is None else None
        if dspy.settings.caller_modules:
            _remember(instance, _entry(instance, inputs, said))
        _tell(listeners, "on_lm_end", call_id=call_id, outputs=outputs, exception=said.failure)
    if (tracker := dspy.settings.usage_tracker) is not None:
        tracker.add_usage(instance.model, usage_entry(said.usage))
    return result


def _remember(instance: CalledModel, entry: dict[str, Any]) -> None:
    """Put a call into DSPy's histories, which keep the last `HISTORY` of ours: DSPy's own bound, 10,000, is 37 MB."""
    import dspy
    from dspy.clients.base_lm import GLOBAL_HISTORY

    dspy.BaseLM.update_history(instance, entry)
    with _trimming:
        for history in (GLOBAL_HISTORY, *(module.history for module in dspy.settings.caller_modules)):
            if len(history) > HISTORY:
                ours = [each for each in history if "role" in (each.get("kwargs") or {})]
                for old in ours[:-HISTORY]:
                    history.remove(old)


def _tell(listeners: Sequence[Any], event: str, **values: Any) -> None:
    for listener in listeners:
        try:
            getattr(listener, event)(**values)
        except Exception as error:
            _log.warning("the callback %r failed in %s: %s", type(listener).__name__, event, error, exc_info=error)


def _entry(instance: CalledModel, inputs: dict[str, Any], said: Said) -> dict[str, Any]:
    """A call as DSPy's histories have it."""
    return {
        **inputs, "response": None, "outputs": said.outputs, "usage": usage_entry(said.usage), "cost": said.usage.cost,
        "timestamp": datetime.datetime.now().isoformat(), "uuid": str(uuid.uuid4()), "model": instance.model,
        "response_model": instance.model, "model_type": instance.model_type,
    }  # fmt: skip


def usage_entry(usage: Usage) -> dict[str, Any]:
    """`usage` as DSPy's usage trackers have it.

    >>> usage_entry(Usage("lab-weak", 1, 20, 5, 4))["prompt_tokens_details"]
    {'cached_tokens': 15}
    """
    return {
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.prompt_tokens - usage.evaluated_tokens},
    }  # fmt: skip
