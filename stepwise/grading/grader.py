"""Verdicts: the exact path in this process, algebra in the pool, and a cache in front of the pool."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

from stepwise.errors import DataError, wrong_type
from stepwise.grading.equality import compare, leaves_arithmetic
from stepwise.grading.pool import WorkerDied, WorkerTimeout, shared_pool
from stepwise.grading.reading import find_answer
from stepwise.grading.text import Unreadable
from stepwise.runs.progress import progress as progress_bar
from stepwise.steps import extract_answer
from stepwise.types import Problem

DEFAULT_TIMEOUT = 10.0
RULES = "6"
_CACHE_SIZE = 65_536


class Verdict(StrEnum):
    """What became of one answer. CORRECT and WRONG say something about the solution; the rest is a failure to judge.

    Example:
        >>> Verdict("CORRECT") is Verdict.CORRECT
        True
    """

    CORRECT = "CORRECT"
    """Equal to the gold answer."""
    WRONG = "WRONG"
    """Read, and not equal to the gold answer; for rewards also one with arithmetic left to do (`29 - 15` for 14)."""
    NO_ANSWER = "NO_ANSWER"
    """The prediction is empty, or has a box that is no answer (empty, open, in a thought) and no answer elsewhere."""
    UNPARSEABLE_PREDICTION = "UNPARSEABLE_PREDICTION"
    """Nothing can be read in the prediction, it is over a cap (see `grading/text.py`), or it cannot be told."""
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

_cache: OrderedDict[tuple[str, str, bool, bool, str], Verdict] = OrderedDict()
_cache_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child forked while another thread holds the lock would wait for ever
    os.register_at_fork(
        before=_cache_lock.acquire, after_in_parent=_cache_lock.release, after_in_child=_cache_lock.release
    )


class _NeedsAlgebra(Exception):
    pass


def grade(
    prediction: str | None,
    gold: str | None,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    outside_box: bool = True,
    accept_arithmetic: bool = True,
) -> Verdict:
    r"""Whether the answer in `prediction` equals the one in `gold`; never hangs.

    `stepwise.grading.find_answer` says which part of `prediction` is read, and how; with `outside_box=False` it is the
    last box alone. None or an empty text is NO_ANSWER. An unevaluated sum (`29 - 15` for 14) is CORRECT, and
    WRONG with `accept_arithmetic=False`, as rewards have it: paying for it teaches to skip the arithmetic.
    `timeout` is in seconds and counts the work of one worker process only. Raises DataError for a `timeout` that is
    not positive and for what is not a text, GradingError when worker processes cannot be run.

    Example:
        >>> grade(r"So it is \boxed{\frac12}.", "0.5")
        <Verdict.CORRECT: 'CORRECT'>
    """
    for name, value in (("prediction", prediction), ("gold", gold)):
        if value is not None and not isinstance(value, str):
            raise DataError(f"grade: {wrong_type(name, value, 'give it as text')}")
    verdict = _grade(prediction, gold, timeout, outside_box=outside_box)
    if verdict is Verdict.CORRECT and not accept_arithmetic:
        answer = find_answer(prediction, outside_box).answer
        return Verdict.WRONG if leaves_arithmetic(answer, extract_answer(gold or "") or gold or "") else verdict
    return verdict


def grade_many(
    pairs: Iterable[tuple[str | None, str | None]],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    progress: bool = False,
    outside_box: bool = True,
    accept_arithmetic: bool = True,
) -> list[Verdict]:
    r"""`grade` for every (prediction, gold), in order, on all workers at once; `progress=True` shows a bar.

    Example:
        >>> [verdict.name for verdict in grade_many([(r"\boxed{0.75}", "3/4"), (r"\boxed{1}", "3/4")])]
        ['CORRECT', 'WRONG']
    """
    from concurrent.futures import ThreadPoolExecutor

    def judged(pair: tuple[str | None, str | None]) -> Verdict:
        return grade(*pair, timeout=timeout, outside_box=outside_box, accept_arithmetic=accept_arithmetic)

    items = list(pairs)
    verdicts = []
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar("grading", len(items))) if progress else None
        # The threads only wait at the pipes; they time nothing.
        threads = stack.enter_context(ThreadPoolExecutor(shared_pool().size, "grading"))
        for verdict in threads.map(judged, items):
            verdicts.append(verdict)
            if advance is not None:
                advance(1)
    return verdicts


def check_gold(problem: Problem, *, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Make sure that the gold answer can be read and equals itself; raises DataError naming the problem if not.

    Example:
        >>> check_gold(Problem("p", "1/2 + 1/4?", "3/4"))
    """
    verdict = _grade(problem.answer, problem.answer, timeout, shortcut=False)
    if verdict is not Verdict.CORRECT:
        raise DataError(
            f"problem {problem.id!r}: its answer {problem.answer!r} grades as {verdict} against itself; "
            "write it as a number, a word or LaTeX that math-verify reads, or leave the problem out"
        )


def _grade(
    prediction: str | None, gold: str | None, timeout: float, *, shortcut: bool = True, outside_box: bool = True
) -> Verdict:
    if not isinstance(timeout, int | float) or not timeout > 0:
        raise DataError(f"timeout={timeout!r} seconds; it must be positive")
    right = extract_answer(gold or "") or ("" if "\\boxed" in (gold or "") else (gold or "").strip())
    if not right:
        return Verdict.UNPARSEABLE_GOLD
    # Where gold answers are checked, both are the same text and nothing is searched for.
    left, source = (right, "box") if not shortcut else find_answer(prediction, outside_box)
    if not left:
        silent = not (prediction or "").strip() or "\\boxed" in (prediction or "") or not outside_box
        return Verdict.NO_ANSWER if silent else Verdict.UNPARSEABLE_PREDICTION
    bare = source != "box"
    try:
        return _truth(compare(left, right, _undecided, shortcut=shortcut, bare=bare))
    except Unreadable as error:
        return _unreadable(error.role)
    except _NeedsAlgebra:
        return _ask(left, right, timeout, shortcut, bare)


def _undecided(prediction: str, gold: str) -> bool:
    raise _NeedsAlgebra


def _truth(equal: bool) -> Verdict:
    return Verdict.CORRECT if equal else Verdict.WRONG


def _unreadable(role: str) -> Verdict:
    return Verdict.UNPARSEABLE_GOLD if role == "gold" else Verdict.UNPARSEABLE_PREDICTION


def _ask(prediction: str, gold: str, timeout: float, shortcut: bool, bare: bool) -> Verdict:
    entry = (gold, prediction, shortcut, bare, GRADER_VERSION)
    with _cache_lock:
        if entry in _cache:
            _cache.move_to_end(entry)
            return _cache[entry]
    try:
        request = {"prediction": prediction, "gold": gold, "shortcut": shortcut, "bare": bare}
        reply = shared_pool().ask(request, timeout)
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
