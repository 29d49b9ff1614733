"""One progress bar for the whole library: drawn on a terminal and in a notebook, a few plain lines elsewhere.

`progress` is the bar of a run. What happens inside of one of its units stands beside its note (`stage`); what takes
long before there is a bar is a line that programs print (`announce`). Where a program shows neither, `heartbeat` says
that it is at work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

from rich import progress as parts
from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stepwise.errors import visible

T = TypeVar("T")
_PLAIN_SECONDS = 10.0
_drawing = threading.Lock()  # held while a bar is shown: two would overwrite one another
_bars: list[_Shown] = []  # the one that is shown, if any
_heard = 0.0  # when a bar was last shown, or something announced
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

    def words(self, *, counted: bool = True) -> str:
        """How fast it goes, the note and the stages, those with a count too where they are `counted`."""
        stages = [
            f"{name} {done}/{total}{_pace(done, total, began)}" if total else name
            for name, done, total, began in [*self.stages]
            if counted or not total
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


def followed(items: Iterable[T], description: str) -> Iterator[T]:
    """The items one after the other, with a bar that moves when the next is asked for.

    >>> list(followed([1, 2], "doubling"))
    [1, 2]
    """
    known = list(items)
    with progress(description, len(known)) as advance:
        for item in known:
            yield item
            advance(1)


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
    global _heard
    if beside_bar or not _bars:
        _heard = time.monotonic()
        _log.info("%s", text)


@contextmanager
def heartbeat(name: str, *, seconds: float = 8.0, console: Console | None = None) -> Iterator[None]:
    """Inside, a line says that `name` is at work where no bar is shown and nothing was announced for so many `seconds`;
    the time to the next line doubles, up to a minute.

    Example:
        with heartbeat("stepwise mine"):
            work_for_minutes()  # "stepwise mine: at work for 8 s"
    """
    console = console or Console(stderr=True)
    began, ended, lock = time.monotonic(), threading.Event(), threading.Lock()

    def watch() -> None:
        quiet_since, wait = began, seconds
        while not ended.wait(min(1.0, seconds / 4)):
            now = time.monotonic()
            quiet_since = now if _bars else max(quiet_since, _heard)
            if now - quiet_since >= wait:
                with lock:
                    if not ended.is_set():
                        _print_line(console, f"{name}: at work for {now - began:.0f} s")
                quiet_since, wait = now, min(2 * wait, max(60.0, seconds))

    threading.Thread(target=watch, name="stepwise-heartbeat", daemon=True).start()
    try:
        yield
    finally:
        with lock:  # the watcher prints nothing any more
            ended.set()


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
            inside = Table.grid(padding=(0, 1))  # a bar for each stage with a count; the one above moves by whole units
            for name, done, total, began in [*shown.stages]:
                if total:
                    pace = Text(f"{done}/{total}{_pace(done, total, began)}", style="dim", no_wrap=True)
                    inside.add_row(Text(f"  {name}", style="dim"), ProgressBar(total, done, width=20), pace)
            yield inside
            if words := shown.words(counted=False):  # on a line of its own: 80 columns have no room beside the bar
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
