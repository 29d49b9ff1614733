"""What the engine is asked for and what it gives back, on token ids."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from queue import SimpleQueue
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stepwise.models.engine.cache import ids_array
from stepwise.models.engine.grammar import Constraint
from stepwise.models.engine.marker import CallMarker
from stepwise.models.engine.sampling import stream_key
from stepwise.models.engine.stopping import Ending, Stop, StopRule
from stepwise.records import record
from stepwise.steps import Splitter
from stepwise.types import Finish

Ranked = tuple[tuple[int, float], ...]  # the likeliest tokens with their log-probabilities, likeliest first


@record()
class GenerationJob:
    """Continue `ids` in `n` samples, from number `first` on; the random numbers of sample i depend on (`seed`, i) only.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch truncation off. `stop`: "step" and "solution" as in
    `Request`, "none" runs to the end of the message or `max_tokens`. `grammar` is GBNF with the rule `root`. `fence`:
    what the prompt left open of code or formulas, `thought`: the mark of a thought that it left open. `ignore_end` runs
    on over end-of-sequence tokens (for measurements). `stop_strings` end a sample with finish "step" where one of them
    was written, what stands before it counts. `top_logprobs`: how many of the likeliest tokens are reported at each
    position. `splitter`: where a step ends (`stepwise.steps.Splitter`). `states`: whether the states of what is written
    are wanted (`Generation.states`). `marker`: see `marker.CallMarker`; with `may_call` it ends the sample.

    Example:
        >>> GenerationJob(ids=(1, 2, 3), max_tokens=64, n=4, temperature=0.0, stop="step").n
        4
    """

    ids: tuple[int, ...] = Field(min_length=1)
    max_tokens: int = Field(default=256, ge=1)
    n: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    stop: Stop = "none"
    grammar: str | None = None
    fence: str = ""
    thought: str = ""
    ignore_end: bool = False
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    top_logprobs: int = Field(default=0, ge=0, le=100)
    first: int = Field(default=0, ge=0)
    splitter: Splitter = "paragraphs"
    states: bool = False
    marker: int | None = None
    may_call: bool = False


@dataclass(frozen=True)
class Generation:
    """One sample of job number `job` (0-based position in the call).

    `ids` as sampled, the end-of-sequence token included; `logprobs` one per id, of the untempered, untruncated and
    unconstrained distribution, whose entropy at each place is in `entropies`. `data` is all bytes written, `text` the
    cleaned text before the stop. `cut` says that the last token ran past the stop: then `end` bytes of `data` count.
    `evaluated_tokens`: of the prompt, what this sample had evaluated. `states` (2, E), where they were asked for: the
    last layer's state at the last token that was run through, and its mean over all of them, which are those written
    but the last (it ends the sample and was drawn only); None where there are none. `call`: see `marker.CallMarker`.

    Example:
        >>> Generation(0, 0, "2 + 2 = 4.", "step").error
        ''
    """

    job: int
    sample: int
    text: str
    finish: Finish
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    data: bytes = b""
    cut: bool = False
    end: int = 0
    evaluated_tokens: int = 0
    error: str = ""
    top: tuple[Ranked, ...] = ()
    entropies: tuple[float, ...] = ()
    states: npt.NDArray[np.float32] | None = None
    call: float | None = None


@dataclass(frozen=True)
class Drawn:
    """One token as soon as it is drawn, of sample number `sample` of the call (0-based over all jobs).

    `top` is what `GenerationJob.top_logprobs` asked for.

    Example:
        for event in engine.stream(job):
            if isinstance(event, Drawn):
                print(event.token, event.logprob)
    """

    sample: int
    token: int
    logprob: float
    top: Ranked = ()


@dataclass(frozen=True)
class Logits:
    """Logits (positions, tokens) of one sequence of `Engine.score`, and how many tokens were evaluated for them.

    Example:
        >>> Logits(np.zeros((3, 2), np.float32)).logits.shape
        (3, 2)
    """

    logits: npt.NDArray[np.float32]
    evaluated_tokens: int = 0
    error: str = ""


ORDER: ContextVar[tuple[int, ...]] = ContextVar("stepwise_order", default=())
"""Where the coroutine stands that asks: what arrives between two turns of a driven engine is taken in this order."""


class Call:
    """One caller's jobs: their results as they come, and an event that is set when all are there.

    A caller who wants to see them at once gives a queue `feed`: it gets each `Drawn` token and each result, and None
    at the end. `on_result` is called with 1 for each result, `on_end` once, on whichever thread ends the call.

    Example:
        call = Call(size=2)
        call.put(0, first)
        call.put(1, second)  # now `call.done` is set
    """

    def __init__(self, size: int, feed: SimpleQueue[Any] | None = None):
        self.feed = feed
        self.results: list[Any] = [None] * size
        self.missing = size
        self.done = threading.Event()
        self.cancelled = False
        self.failure: Exception | None = None
        self.on_result: Callable[[int], None] = lambda count: None
        self.on_end: Callable[[], None] | None = None
        self.order = ORDER.get()

    def put(self, place: int, result: Any) -> None:
        """Store one result; the last one wakes the caller."""
        self.results[place] = result
        self.missing -= 1
        self.on_result(1)
        if self.feed is not None:
            self.feed.put(result)
        if not self.missing:
            self._end()

    def fail(self, error: Exception) -> None:
        """The whole call is impossible."""
        self.failure = error
        self._end()

    def outcome(self) -> list[Any]:
        """The results once `done` is set. Raises what made the whole call fail."""
        if self.failure is not None:
            raise self.failure
        return self.results

    def _end(self) -> None:
        if self.on_end is not None:
            self.on_end()
        self.done.set()
        if self.feed is not None:
            self.feed.put(None)


class Prompt:
    """Shared by the samples of one job: the ids, and the logits (V,) after the last of them once they are known.

    >>> Prompt([5, 7, 9], samples=4).left
    4
    """

    __slots__ = ("busy", "ids", "left", "row")

    def __init__(self, ids: Sequence[int], samples: int):
        self.ids: array[int] = ids_array(ids)
        self.left = samples  # not started yet
        self.row: npt.NDArray[np.float32] | None = None
        self.busy = False  # a sample is evaluating it


@dataclass(slots=True, eq=False)
class Unit:
    """What runs on one stream, `Sample` or `Scoring`; `place` is where its result goes in the call.

    `ids` is what the stream holds or will hold: the prompt, then what was sampled; `at` is how many of them are
    evaluated. `evaluated` counts the ids of the prompt that were not known.

    Example:
        sample = Sample(call, 0, Prompt(job.ids, job.n), job, number=0, sample=0)
        print(len(sample.ids) - sample.at, "tokens are to be evaluated")
    """

    call: Call
    place: int
    prompt: Prompt
    ids: array[int] = field(init=False, default_factory=ids_array)
    at: int = field(init=False, default=0)
    evaluated: int = field(init=False, default=0)
    path: Any = field(init=False, default=None)  # of the prefix cache
    constraint: Constraint | CallMarker | None = field(init=False, default=None)

    @property
    def gives_states(self) -> bool:
        """Whether the states at what is evaluated next are wanted."""
        return False

    def result(self, ending: Ending | None, error: str = "") -> Any:
        """What the caller gets; without an `ending`, a sample is an error."""


@dataclass(slots=True, eq=False)
class Sample(Unit):
    """Sample `sample` of `job`, the call's number `number`.

    Example:
        sample = Sample(call, 0, Prompt(job.ids, job.n), job, number=0, sample=0)
    """

    job: GenerationJob
    number: int
    sample: int
    key: int = field(init=False)  # of its random numbers
    rule: StopRule = field(init=False)
    out: list[int] = field(init=False, default_factory=list)
    logprobs: list[float] = field(init=False, default_factory=list)
    top: list[Ranked] = field(init=False, default_factory=list)
    entropies: list[float] = field(init=False, default_factory=list)
    states: Any = field(init=False, default=None)  # (2, E): at the last token, and their sum over all tokens

    def __post_init__(self) -> None:
        self.key = stream_key(self.job.seed, self.job.first + self.sample)
        stops = [text.encode() for text in self.job.stop_strings]
        if self.job.marker is not None:
            self.constraint = CallMarker(self.job.marker, self.job.may_call)
        self.rule = StopRule(self.job.stop, self.job.fence.encode(), stops, self.job.thought, self.job.splitter)

    @property
    def gives_states(self) -> bool:
        """Once it writes."""
        return self.job.states and len(self.ids) - self.at <= 1

    def add_state(self, state: npt.NDArray[np.float32]) -> None:
        """Take the state (E,) at a token that was written; of the prompt's last one nothing is taken."""
        if self.job.states and self.out:
            if self.states is None:
                self.states = np.zeros((2, len(state)), np.float32)
            self.states[0] = state
            self.states[1] += state

    def result(self, ending: Ending | None, error: str = "") -> Generation:
        """See `Unit`."""
        data = bytes(self.rule.data)
        ending = ending or Ending("error", len(data), 0)
        early = ending.finish == "step" or (ending.finish == "answer" and ending.end < len(data))
        states = None if self.states is None else self.states / np.array([[1], [len(self.out) - 1]], np.float32)
        return Generation(
            self.number, self.sample, self.rule.text(ending), ending.finish, tuple(self.out), tuple(self.logprobs),
            data, early and bool(data[ending.end :].strip(b"\r\n")), ending.end, self.evaluated, error,
            tuple(self.top), tuple(self.entropies), states, getattr(self.constraint, "call", None),
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class Scoring(Unit):
    """A sequence whose logits of `token_ids` (K,) are asked for after each of the positions `wanted` (P,), ascending.

    `rows`: those known so far, (K,) each.

    Example:
        scoring = Scoring(call, 0, Prompt(ids, 1), wanted=[len(ids) - 1], token_ids=np.array([yes, no]))
    """

    wanted: Sequence[int]
    token_ids: npt.NDArray[np.int64]
    rows: list[Any] = field(init=False, default_factory=list)

    def take(self, logits: npt.NDArray[np.float32], states: npt.NDArray[np.float32] | None) -> None:
        """The next rows (R, V) of those wanted."""
        self.rows += list(logits[:, self.token_ids])

    def result(self, ending: Ending | None, error: str = "") -> Any:
        """See `Unit`."""
        rows = np.empty((0, len(self.token_ids)), np.float32) if error else np.stack(self.rows)  # (P, K)
        return Logits(rows, self.evaluated, error)


def problem_of(ids: Sequence[int], engine: Any, positions: Sequence[int] = ()) -> str:
    """Why `engine` cannot run a sequence, "" where it can.

    Example:
        problem_of([1, 2], engine)
    """
    most, size = engine.context, engine.vocabulary.size
    if not ids:
        return "the prompt has no tokens"
    if len(ids) > most:
        return f"the prompt has {len(ids)} tokens, more than the context of {most}; load with a larger context"
    if min(ids) < 0 or max(ids) >= size:
        return f"a token id lies outside the vocabulary of {size} tokens"
    if any(not 0 <= p < len(ids) for p in positions) or any(a >= b for a, b in pairwise(positions)):
        return f"positions {list(positions)[:8]} are not ascending places of a sequence of {len(ids)} tokens"
    return ""


@dataclass(frozen=True)
class Counters:
    """What an engine has done since it was loaded.

    `evaluated_tokens` went through the model; `distinct_tokens` of them are different nodes of the token trie (per
    adapter): what any engine would have had to evaluate at least. `cache_hits` counts sequences that found a part of
    their prompt known.

    Example:
        >>> Counters(evaluated_tokens=12).generated_tokens
        0
    """

    evaluated_tokens: int = 0
    distinct_tokens: int = 0
    generated_tokens: int = 0
    decode_calls: int = 0
    cache_hits: int = 0
    adapter_switches: int = 0
