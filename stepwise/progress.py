"""One progress bar for the whole library: drawn on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

Advance = Callable[[int], None]
_PLAIN_SECONDS = 10.0


@contextmanager
def progress(description: str, total: int, *, console: Console | None = None) -> Iterator[Advance]:
    """Yields a function that moves the bar on by so many of `total`; thread-safe on a terminal.

    Where standard error is no terminal, a line is printed at the start, at most every ten seconds, and at the end.
    """
    console = console or Console(stderr=True)
    bar = _bar(description, total, console) if console.is_terminal else _lines(description, total, console)
    with bar as advance:
        yield advance


@contextmanager
def _bar(description: str, total: int, console: Console) -> Iterator[Advance]:
    from rich import progress as parts

    columns = (
        parts.TextColumn("{task.description}"),
        parts.BarColumn(),
        parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(),
        parts.TimeRemainingColumn(),
    )
    with parts.Progress(*columns, console=console) as shown:
        task = shown.add_task(description, total=total)
        yield lambda count: shown.update(task, advance=count)


@contextmanager
def _lines(description: str, total: int, console: Console) -> Iterator[Advance]:
    began = last = time.monotonic()
    done = 0

    def say() -> None:
        seconds = time.monotonic() - began
        console.print(f"{description}: {done}/{total}, {seconds:.0f} s", markup=False, highlight=False)

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= _PLAIN_SECONDS and done < total:
            last = time.monotonic()
            say()

    say()
    try:
        yield advance
    finally:
        say()
