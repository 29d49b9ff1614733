"""One progress bar for the whole library: drawn on a terminal and in a notebook, a few plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from rich import progress as parts
from rich.console import Console, RenderableType
from rich.text import Text

from stepwise.errors import visible

_PLAIN_SECONDS = 10.0
_drawing = threading.Lock()  # held while a bar is shown: two would overwrite one another


class _Advance(Protocol):
    """Moves a bar on, `advance(count)`, and says how the work stands, `advance(count, "examples 41, guided 12 %")`."""

    def __call__(self, count: int, note: str | None = None) -> None:
        """Move on by `count`, with a new note where one is given: one short line without markup; "" takes it away."""
        ...


@contextmanager
def progress(description: str, total: int, *, console: Console | None = None) -> Iterator[_Advance]:
    """Yields what moves the bar on by so many of `total`, and sets a note under it; thread-safe.

    The bar is drawn on a terminal and in a notebook (with ipywidgets). Elsewhere a line is printed at the start, at
    most every ten seconds, and at the end; the note ends the line. Inside another bar there is none.

    Example:
        with progress("routing", len(problems)) as advance:
            for problem in problems:
                advance(1, problem.id)
    """
    console, description = console or Console(stderr=True), visible(description)
    if not _drawing.acquire(blocking=False):
        yield lambda count, note=None: None
        return
    notebook = console.is_jupyter and find_spec("ipywidgets") is not None
    draw = _bar if console.is_terminal or notebook else _lines
    try:
        with draw(description, total, console) as advance:
            yield advance
    finally:
        _drawing.release()


@contextmanager
def _bar(description: str, total: int, console: Console) -> Iterator[_Advance]:
    columns = (
        parts.TextColumn("{task.description}"),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(),
        parts.TimeRemainingColumn(),
    )
    said = ""

    class Noted(parts.Progress):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield from super().get_renderables()
            if said:  # a line of its own: beside the bar there is no room on a terminal of 80 columns
                yield Text(said, style="dim", no_wrap=True, overflow="ellipsis")

    with Noted(*columns, console=console) as shown:
        task = shown.add_task(description, total=total)

        def show(count: int, note: str | None = None) -> None:
            nonlocal said
            said = said if note is None else visible(note)
            shown.update(task, advance=count)

        yield show


@contextmanager
def _lines(description: str, total: int, console: Console) -> Iterator[_Advance]:
    began = last = time.monotonic()
    done, said = 0, ""

    def say() -> None:
        line = f"{description}: {done}/{total}, {time.monotonic() - began:.0f} s"
        console.print(f"{line}, {said}" if said else line, markup=False, highlight=False, soft_wrap=True)

    def show(count: int, note: str | None = None) -> None:
        nonlocal done, said, last
        done, said = done + count, said if note is None else visible(note)
        if time.monotonic() - last >= _PLAIN_SECONDS and done < total:
            last = time.monotonic()
            say()

    say()
    try:
        yield show
    finally:
        say()
