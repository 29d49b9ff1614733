"""One progress bar for the whole library: drawn on a terminal and in a notebook, a few plain lines elsewhere.

`progress` is the bar of a run. What happens inside of one of its units stands beside its note (`stage`); what takes
long before there is a bar is a line that programs print (`announce`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, Protocol

from rich import progress as parts
from rich.console import Console, RenderableType
from rich.text import Text

from stepwise.errors import visible

_PLAIN_SECONDS = 10.0
_drawing = threading.Lock()  # held while a bar is shown: two would overwrite one another
_bars: list[_Shown] = []  # the one that is shown, if any
_log = logging.getLogger(__name__)


class _Advance(Protocol):
    """Moves a bar on, `advance(count)`, and says how the work stands, `advance(count, "examples 41, guided 12 %")`."""

    def __call__(self, count: int, note: str | None = None) -> None:
        """Move on by `count`, with a new note where one is given: one short line without markup; "" takes it away."""
        ...


class _Shown:
    """What a bar shows: how much is done of what, the note, and the stages of what is being done."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.done, self.note = description, total, done, ""
        self.stages: list[list[Any]] = []  # name, done, total, when it began
        self.before, self.began = done, time.monotonic()

    def words(self) -> str:
        """How fast it goes, the note and the stages."""
        stages = [
            f"{name} {done}/{total}{_pace(done, total, began)}" if total else name
            for name, done, total, began in [*self.stages]
        ]
        pace = _pace(self.done - self.before, self.total - self.before, self.began).strip(" ()")
        return ", ".join(filter(None, (pace, self.note, *stages)))

    def line(self) -> str:
        """All of it in one line."""
        return ", ".join(filter(None, (
            f"{self.description}: {self.done}/{self.total}", f"{time.monotonic() - self.began:.0f} s",
            self.words(),
        )))  # fmt: skip


def _pace(done: int, total: int, began: float) -> str:
    """How fast it goes and how long the rest takes, " (3.1/s, 40 s left)"; "" before that can be said."""
    seconds = time.monotonic() - began
    if not done or seconds < 1:
        return ""
    rate, unit = (done / seconds, "s") if done >= seconds else (60 * done / seconds, "min")
    left = (total - done) * seconds / done
    rest = (
        f", {left:.0f} s left"
        if left < 100
        else f", {left / 60:.0f} min left"
        if left < 6000
        else f", {left / 3600:.1f} h left"
    )
    return f" ({rate:.3g}/{unit}{rest if done < total else ''})"


@contextmanager
def progress(description: str, total: int, *, done: int = 0, console: Console | None = None) -> Iterator[_Advance]:
    """Yields what moves the bar on by so many of `total`, and sets a note under it; thread-safe.

    The bar is drawn on a terminal and in a notebook (with ipywidgets). Elsewhere a line is printed at the start, every
    ten seconds, and at the end; note and stage end the line. `done` were done by an earlier start, which is said.
    Inside another bar it is a `stage` of that one.

    Example:
        with progress("routing", len(problems)) as advance:
            for problem in problems:
                advance(1, problem.id)
    """
    console = console or Console(stderr=True)
    if not _drawing.acquire(blocking=False):
        with stage(description, total) as advance:
            yield advance
        return
    shown = _Shown(visible(description), total, done)
    if done:
        rest = f"going on at {done + 1}" if done < total else "nothing is left to do"
        _print_line(console, f"{shown.description}: {done} of {total} done, {rest}")
    notebook = console.is_jupyter and find_spec("ipywidgets") is not None
    draw = _bar if console.is_terminal or notebook else _lines
    try:
        with draw(shown, console) as moved:
            _bars.append(shown)

            def advance(count: int, note: str | None = None) -> None:
                shown.done += count
                shown.note = shown.note if note is None else visible(note)
                moved()

            yield advance
    finally:
        _bars.clear()
        _drawing.release()


@contextmanager
def stage(name: str, total: int = 0) -> Iterator[_Advance]:
    """What is being done inside of a unit of the bar that is shown: its name and how much of `total` (0: not counted)
    is done stand beside the note until the block ends. Without a bar nothing is shown.

    Example:
        with stage("locating", len(attempts)) as advance:
            advance(1)
    """
    entry: list[Any] = [visible(name), 0, total, time.monotonic()]
    stages = _bars[0].stages if _bars else []
    stages.append(entry)

    def advance(count: int, note: str | None = None) -> None:
        entry[1] += count

    try:
        yield advance
    finally:
        with suppress(ValueError):
            stages.remove(entry)


def announce(text: str, *, beside_bar: bool = False) -> None:
    """Say what is done now, where no bar is shown, or `beside_bar`: a line of the log, which programs print.

    Example:
        announce("reading 1,319 problems")
    """
    if beside_bar or not _bars:
        _log.info("%s", text)


def _print_line(console: Console, text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _bar(shown: _Shown, console: Console) -> Iterator[Callable[[], None]]:
    columns = (
        parts.TextColumn("{task.description}"),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(),
        parts.TimeRemainingColumn(),
    )

    class Noted(parts.Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield from super().get_renderables()
            if words := shown.words():  # a line of its own: beside the bar there is no room on a terminal of 80 columns
                yield Text(words, style="dim", no_wrap=True, overflow="ellipsis")

    with Noted(*columns, console=console) as drawn:
        task = drawn.add_task(shown.description, total=shown.total, completed=shown.done)
        yield lambda: drawn.update(task, completed=shown.done)


@contextmanager
def _lines(shown: _Shown, console: Console) -> Iterator[Callable[[], None]]:
    ended, last = threading.Event(), time.monotonic()
    lock = threading.Lock()

    def moved() -> None:
        nonlocal last
        with lock:
            if not ended.is_set() and time.monotonic() - last >= _PLAIN_SECONDS and shown.done < shown.total:
                last = time.monotonic()
                _print_line(console, shown.line())

    def watch() -> None:  # a unit may take long, and says nothing by itself
        while not ended.wait(1):
            moved()

    _print_line(console, shown.line())
    threading.Thread(target=watch, name="stepwise-progress", daemon=True).start()
    try:
        yield moved
    finally:
        ended.set()
        with lock:  # the watcher prints nothing any more
            shown.stages.clear()
            _print_line(console, shown.line())
