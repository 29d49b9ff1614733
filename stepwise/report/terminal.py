"""A trace and the table of a report in a terminal, with rich."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stepwise.errors import redact
from stepwise.report.model import (
    FINISH_WORDS,
    LAB_NOTICE,
    Report,
    author_kind,
    author_letter,
)
from stepwise.report.table import COLUMNS, caption
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Step, Trace

COLOURS = {"weak": "color(33)", "strong": "color(208)", "intervention": "color(36)", "other": "color(245)"}
BAR_CELLS = 8
FULL_WIDTH = 124  # the whole table, with the longest names of the built-in policies


def show_trace(trace: Trace, console: Console | None = None) -> None:
    """Print a trace: each step in its author's colour with its score, its discarded drafts dimmed, and how it ended.

    Lines wrap at the console's width. Control characters in model output are shown, never sent to the terminal.
    """
    print_all(console or Console(), _parts(trace))


class StepStream:
    """Prints one trace after the other while they are made: call it with what there is of a trace, as often as you
    like, and it prints what is new, as `show_trace` prints it.

    A trace that goes on otherwise than it was printed (the strong model solves the problem anew) is printed anew.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._out = console or Console()
        self._problem: Problem | None = None
        self._shown: tuple[Step, ...] = ()

    def __call__(self, trace: Trace) -> None:
        """Print what `trace` has more than was printed of it, and how it ended."""
        new: list[RenderableType] = []
        if trace.problem != self._problem:
            new += _question(trace.problem)
            self._shown = ()
        elif [s.text for s in trace.steps[: len(self._shown)]] != [s.text for s in self._shown]:
            new.append(printable("solved anew", "bold"))
            self._shown = ()
        for index in range(len(self._shown), len(trace.steps)):
            new += _step(index, trace.steps[index])
        if trace.finish:
            new += [*_drafts(trace.abandoned, "abandoned draft"), _ending(trace), ""]
        print_all(self._out, new)
        self._problem, self._shown = trace.problem, trace.steps


def summary_table(report: Report, width: int | None = None) -> Table:
    """The table of the report's page, for `rich.print`; lab figures are called that below it.

    On a console narrower than `FULL_WIDTH` columns (`width`), only the columns that matter most.
    """
    below = caption(report.rows) + (f" {LAB_NOTICE}" if report.lab else "")
    table = Table(title=printable(report.title), caption=below, box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    table.caption_style, table.caption_justify = "dim", "left"
    shown = [c for c in COLUMNS if not c.extra or width is None or width >= FULL_WIDTH]
    for i, column in enumerate(shown):
        table.add_column(column.title, justify="left" if i == 0 else "right")
    for row in report.rows:
        table.add_row(*(printable(column.text(row)) for column in shown))
    return table


def _parts(trace: Trace) -> Iterator[RenderableType]:
    yield from _question(trace.problem)
    for index, step in enumerate(trace.steps):
        yield from _step(index, step)
    yield from _drafts(trace.abandoned, "abandoned draft")
    yield _ending(trace)


def _question(problem: Problem) -> Iterator[RenderableType]:
    yield printable(problem.id, "bold")
    yield Padding(printable(problem.question), (0, 0, 1, 2))


def _step(index: int, step: Step) -> Iterator[RenderableType]:
    yield from _drafts(step.discarded, "discarded draft")
    yield _heading(step, f"step {index}")
    yield indented(step.text, COLOURS[author_kind(step.author)])
    if step.decision:
        yield indented(step.decision, "dim italic")


def _drafts(drafts: Sequence[Step], what: str) -> Iterator[RenderableType]:
    for draft in drafts:
        yield _heading(draft, what, dim=True)
        yield indented(draft.text, "dim strike")


def _heading(step: Step, what: str, dim: bool = False) -> Text:
    """Badge, author, model and score of a step on one line."""
    colour = COLOURS[author_kind(step.author)] + (" dim" if dim else "")
    parts = [(f" {author_letter(step.author)} ", f"{colour} reverse bold"), (f" {step.author}", colour)]
    parts.append((f"  {what}", "dim"))
    if step.usage.model:
        parts.append((f"  {step.usage.model}", "dim"))
    if step.score is not None:
        filled = round(BAR_CELLS * step.score)
        bar = "█" * filled + "░" * (BAR_CELLS - filled)
        parts.append((f"  {bar} {step.score:.2f}", "dim" if dim else ""))
    return _line(parts)


def _ending(trace: Trace) -> Text:
    cost = cost_of([trace])
    parts = [(f"finish: {trace.finish or 'open'} ({FINISH_WORDS[trace.finish]})", "bold")]
    if trace.answer is not None:
        parts.append((f"  answer {trace.answer}", ""))
    if trace.problem.answer is not None:
        parts.append((f"  gold {trace.problem.answer}", ""))
    spent = f"  strong tokens {cost.strong_tokens}, all tokens {cost.all_tokens}, calls {cost.calls}"
    note = f"  {redact(trace.note)}" if trace.note else ""
    return _line([*parts, (spent, "dim"), (note, "dim")])


def _line(parts: Iterable[tuple[str, str]]) -> Text:
    """Texts with their styles, side by side."""
    return Text.assemble(*(printable(text, style) for text, style in parts))


def print_all(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print what a trace or an attempt is shown as: without markup, wrapped at the console's width."""
    for part in parts:
        console.print(part, markup=False, highlight=False, soft_wrap=False)


def indented(value: str, style: str = "") -> Padding:
    """`printable`, under the heading of its step."""
    return Padding(printable(value, style), (0, 0, 0, 4), expand=False)


def printable(value: str, style: str = "") -> Text:
    """`value` for rich, without markup; its control characters, save line feed and tab, as visible escapes."""
    # A model must not drive the terminal.
    safe = (c if c in "\n\t" or unicodedata.category(c) != "Cc" else f"\\x{ord(c):02x}" for c in value)
    return Text("".join(safe), style=style)
