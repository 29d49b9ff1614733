"""A collection of interventions in a terminal: what became of the attempts, and some examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich import box
from rich.table import Table

from stepwise.data.examples import Example
from stepwise.interventions.rows import FailedAttempt
from stepwise.report.terminal import COLOURS, printable

_OF = {
    "rollouts without a text": "rollouts",
    "failed attempts": "rollouts",
    "errors located": "failed attempts",
    "attempts that the critic finds right": "failed attempts",
    "localizations that failed": "failed attempts",
    "proposals that failed": "candidates",
    "candidates that leak": "candidates",
    "answer steps left out": "candidates",
    "candidates guided": "candidates",
    "guided rollouts that end right": "guided rollouts",
    "examples": "failed attempts",
}
_LONGEST = 160  # characters of a step that is shown in short


def as_table(counts: Mapping[str, int]) -> Table:
    """The funnel with the share of each stage in the one it comes from."""
    table = _table("What became of the attempts")
    table.add_column("stage")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    for name, count in counts.items():
        whole = _OF.get(name, "")
        share = f"{count / counts[whole]:.0%} of {whole}" if counts.get(whole) else ""
        table.add_row(name, f"{count:,}", share, style="bold" if name == "examples" else "")
    return table


def side_by_side(examples: Iterable[Example], failures: Mapping[str, FailedAttempt]) -> Table:
    """Each example in short: the step that was wrong, and the intervention in its place."""
    table = _table("Wrong step and intervention")
    table.add_column("attempt", overflow="fold")
    table.add_column("step", justify="right")
    table.add_column("wrong step", ratio=1)
    table.add_column("intervention", ratio=1)
    table.add_column("right", justify="right")
    for example in examples:
        location = len(example.prefix)
        failure = failures[example.parents["failure"]]
        wrong, better = _shortened(failure.steps[location]), _shortened(example.intervention)
        style = COLOURS["intervention"]
        cells = (printable(wrong), printable(better, style), f"{example.successes} of {example.guided}")
        table.add_row(printable(failure.id), str(location), *cells)
    return table


def _shortened(text: str, most: int = _LONGEST) -> str:
    """`text` on one line, cut behind `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
