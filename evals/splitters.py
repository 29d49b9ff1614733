"""Two ways of ending a step, on the same solutions: at blank lines, and where there is something to check.

Solutions come from --traces (ProcessBench's columns, whose steps are joined by blank lines) and from the attempts that
`evals.signals` keeps in --attempts.
Printed for each splitter: steps, their share with something to check (a number, relation or formula outside of headings
and list marks, and no colon at the end), that with two calculations or more, and their size. Needs no model.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from pydantic import PositiveInt

from stepwise.data.processbench import read_rows
from stepwise.errors import DataError
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import wilson
from stepwise.steps import Splitter, StepEnds, join_steps, split_steps

from .signals import Attempt

_CALCULATION = re.compile(r"\d[^=≈\n]{0,80}[=≈]\s*[^=≈\n]{0,20}?\d")


class _Options(Options):
    traces: tuple[Path, ...] = ()
    attempts: Path | None = None
    """directory of a run of evals.signals"""
    n: PositiveInt = 200
    """solutions of each source"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    args = run.args
    sources = {path.name: [row.trace.text for row in read_rows(path)][: args.n] for path in args.traces}
    if args.attempts:
        sources["own attempts"] = list(_own(args.attempts))[: args.n]
    if not sources:
        raise DataError("--traces or --attempts: give at least one of them")
    for name, texts in sources.items():
        rows = [_row(splitter, texts) for splitter in get_args(Splitter)]
        columns = (
            "Splitter",
            "Steps",
            "A solution",
            "With something to check",
            "Two calculations or more",
            "Characters",
        )
        run.table(f"{name}: {len(texts)} solutions", columns, rows)


def _own(directory: Path) -> Iterator[str]:
    for line in (directory / "attempts.jsonl").read_text(encoding="utf-8").splitlines():
        yield Attempt.read(line).text


def _row(splitter: Splitter, texts: Sequence[str]) -> tuple[str, ...]:
    steps = [step for text in texts for step in split_steps(text, splitter)]
    if splitter == "calculations" and any(join_steps(split_steps(text, splitter), splitter) != text for text in texts):
        raise DataError("a solution does not come back from its steps")
    full = sum(map(has_content, steps))
    several = sum(len(_CALCULATION.findall(step)) > 1 for step in steps)
    share, many = wilson(full, len(steps)), wilson(several, len(steps))
    size = sorted(map(len, steps))
    return (
        splitter, f"{len(steps):,}", f"{len(steps) / len(texts):.1f}",
        f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})", f"{many.value:.1%}",
        f"{statistics.median(size):.0f} (90 % below {size[int(0.9 * len(size))]})",
    )  # fmt: skip


def has_content(step: str) -> bool:
    """Whether there is something to check in a step, and it is not left to the next one."""
    ends = StepEnds()
    return any(ends.after(line) for line in [*step.split("\n"), ""])


if __name__ == "__main__":
    raise SystemExit(main())
