"""One progress bar for the whole library: drawn on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType

_PLAIN_SECONDS = 10.0


class Advance:
    """Moves one bar on, `advance(count)`, and says how the work stands, `advance.note("examples 41, guided 12 %")`."""

    def __init__(self, move: Callable[[int], None], tell: Callable[[str], None]) -> None:
        self._move, self._tell = move, tell

    def __call__(self, count: int) -> None:
        """Move on by `count`."""
        self._move(count)

    def note(self, text: str) -> None:
        """Show `text`, one short line without markup, until there is another; "" takes it away."""
        self._tell(text)


@contextmanager
def progress(description: str, total: int, *, console: Console | None = None) -> Iterator[Advance]:
    """Yields what moves the bar on by so many of `total`, and sets a note under it; thread-safe on a terminal.

    Where standard error is no terminal, a line is printed at the start, at most every ten seconds, and at the end; the
    note ends the line.
    """
    console = console or Console(stderr=True)
    bar = _bar(description, total, console) if console.is_terminal else _lines(description, total, console)
    with bar as advance:
        yield advance


@contextmanager
def _bar(description: str, total: int, console: Console) -> Iterator[Advance]:
    from rich import progress as parts
    from rich.text import Text

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

    def tell(text: str) -> None:
        nonlocal said
        said = text

    with Noted(*columns, console=console) as shown:
        task = shown.add_task(description, total=total)
        yield Advance(lambda count: shown.update(task, advance=count), tell)


@contextmanager
def _lines(description: str, total: int, console: Console) -> Iterator[Advance]:
    began = last = time.monotonic()
    done, said = 0, ""

    def say() -> None:
        line = f"{description}: {done}/{total}, {time.monotonic() - began:.0f} s"
        console.print(f"{line}, {said}" if said else line, markup=False, highlight=False, soft_wrap=True)

    def say_now_and_then() -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_SECONDS and done < total:
            last = time.monotonic()
            say()

    def move(count: int) -> None:
        nonlocal done
        done += count
        say_now_and_then()

    def tell(text: str) -> None:
        nonlocal said
        said = text
        say_now_and_then()

    say()
    try:
        yield Advance(move, tell)
    finally:
        say()
