"""Verdicts: the exact path in this process, algebra in the pool, and a cache in front of the pool."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

from stepwise.errors import DataError
from stepwise.grading.answers import compare
from stepwise.grading.pool import WorkerDied, WorkerTimeout, shared_pool
from stepwise.grading.text import Unreadable, find_answer
from stepwise.runs.progress import progress as progress_bar
from stepwise.types import Problem

DEFAULT_TIMEOUT = 10.0
RULES = "2"
_CACHE_SIZE = 65_536


class Verdict(StrEnum):
    """What became of one answer. CORRECT and WRONG say something about the solution; the rest is a failure to judge."""

    CORRECT = "CORRECT"
    """Equal to the gold answer."""
    WRONG = "WRONG"
    """Read, and not equal to the gold answer."""
    NO_ANSWER = "NO_ANSWER"
    """The prediction is empty, or has a box that is empty or never closed."""
    UNPARSEABLE_PREDICTION = "UNPARSEABLE_PREDICTION"
    """The predicted answer is neither a number, a word nor a formula, or is over a cap (see `grading/text.py`)."""
    UNPARSEABLE_GOLD = "UNPARSEABLE_GOLD"
    """The gold answer cannot be read; `check_gold` finds these before a run."""
    TIMEOUT = "TIMEOUT"
    """The worker was killed because it took too long."""
    ERROR = "ERROR"
    """The worker died, or the algebra failed with an error of its own."""

    @property
    def carries_reward(self) -> bool:
        """True for CORRECT and WRONG."""
        return self in (Verdict.CORRECT, Verdict.WRONG)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


GRADER_VERSION = f"{RULES}+math-verify-{_version('math-verify')}+sympy-{_version('sympy')}"
"""Stamp it beside stored verdicts: verdicts of different versions are not comparable."""

_cache: OrderedDict[tuple[str, str, bool, str], Verdict] = OrderedDict()
_cache_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child forked while another thread holds the lock would wait for ever
    os.register_at_fork(
        before=_cache_lock.acquire, after_in_parent=_cache_lock.release, after_in_child=_cache_lock.release
    )


class _NeedsAlgebra(Exception):
    pass


def grade(prediction: str | None, gold: str | None, *, timeout: float = DEFAULT_TIMEOUT) -> Verdict:
    r"""Whether the answer in `prediction` equals the one in `gold`; never hangs.

    A text with `\boxed{}` is searched for its last closed box after </think>; otherwise the whole text is the answer.
    None or an empty text is NO_ANSWER. `timeout` is in seconds and counts the work of one worker process only.
    Raises DataError for a `timeout` that is not positive and for what is not a text, GradingError when worker processes
    cannot be run.
    """
    for name, value in (("prediction", prediction), ("gold", gold)):
        if value is not None and not isinstance(value, str):
            raise DataError(f"grade: {name} is {value!r}, a {type(value).__name__}; give it as text")
    return _grade(prediction, gold, timeout, shortcut=True)


def grade_many(
    pairs: Iterable[tuple[str | None, str | None]],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    progress: bool = False,
) -> list[Verdict]:
    """`grade` for every (prediction, gold), in order, on all workers at once; `progress=True` shows a bar."""
    from concurrent.futures import ThreadPoolExecutor

    items = list(pairs)
    verdicts = []
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar("grading", len(items))) if progress else None
        # The threads only wait at the pipes; they time nothing.
        threads = stack.enter_context(ThreadPoolExecutor(shared_pool().size, "grading"))
        for verdict in threads.map(lambda pair: grade(*pair, timeout=timeout), items):
            verdicts.append(verdict)
            if advance is not None:
                advance(1)
    return verdicts


def check_gold(problem: Problem, *, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Make sure that the gold answer can be read and equals itself; raises DataError naming the problem if not."""
    verdict = _grade(problem.answer, problem.answer, timeout, shortcut=False)
    if verdict is not Verdict.CORRECT:
        raise DataError(
            f"problem {problem.id!r}: its answer {problem.answer!r} grades as {verdict} against itself; "
            "write it as a number, a word or LaTeX that math-verify reads, or leave the problem out"
        )


def _grade(prediction: str | None, gold: str | None, timeout: float, *, shortcut: bool) -> Verdict:
    if not timeout > 0:
        raise DataError(f"timeout={timeout!r} seconds; it must be positive")
    right, left = find_answer(gold), find_answer(prediction)
    if not right:
        return Verdict.UNPARSEABLE_GOLD
    if not left:
        return Verdict.NO_ANSWER
    try:
        return _truth(compare(left, right, _undecided, shortcut=shortcut))
    except Unreadable as error:
        return _unreadable(error.role)
    except _NeedsAlgebra:
        return _ask(left, right, timeout, shortcut)


def _undecided(prediction: str, gold: str) -> bool:
    raise _NeedsAlgebra


def _truth(equal: bool) -> Verdict:
    return Verdict.CORRECT if equal else Verdict.WRONG


def _unreadable(role: str) -> Verdict:
    return Verdict.UNPARSEABLE_GOLD if role == "gold" else Verdict.UNPARSEABLE_PREDICTION


def _ask(prediction: str, gold: str, timeout: float, shortcut: bool) -> Verdict:
    entry = (gold, prediction, shortcut, GRADER_VERSION)
    with _cache_lock:
        if entry in _cache:
            _cache.move_to_end(entry)
            return _cache[entry]
    try:
        reply = shared_pool().ask({"prediction": prediction, "gold": gold, "shortcut": shortcut}, timeout)
    except WorkerTimeout:
        return Verdict.TIMEOUT
    except WorkerDied:
        return Verdict.ERROR
    if "equal" in reply or "unreadable" in reply:
        verdict = _truth(reply["equal"]) if "equal" in reply else _unreadable(reply["unreadable"])
        with _cache_lock:
            _cache[entry] = verdict
            if len(_cache) > _CACHE_SIZE:
                _cache.popitem(last=False)
        return verdict
    # Timeouts and errors depend on the machine's load and memory, so they are not remembered.
    return Verdict.TIMEOUT if "timeout" in reply else Verdict.ERROR
