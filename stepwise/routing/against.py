"""A run of routing beside an earlier one, paired by problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepwise.errors import DataError
from stepwise.io import read_rows
from stepwise.routing.compare import Comparison, judge
from stepwise.types import Trace

if TYPE_CHECKING:
    from stepwise.routing.chunked import Routed
    from stepwise.routing.router import StepRouter


def traces_of(run: str | Path) -> Path:
    """The file with the traces in the directory of a run. Raises `DataError` where there is none.

    Example:
        read_rows(traces_of("out/before"), Trace)
    """
    file = Path(run) / "traces.jsonl"
    if not file.is_file():
        raise DataError(f"{file}: no such file; give the directory of another run of `stepwise route`")
    return file


def against(router: StepRouter | Routed, traces: Sequence[Trace], other: str | Path) -> Comparison:
    """`traces` of `router` and those of another run, in the directory `other`, on the problems of both: two entries,
    the second named after the directory. Sizes of models are taken to be those of `router`.

    Raises `DataError` where `other` holds no traces, or none of these problems.

    Example:
        >>> both = against(router, router.solve_all(problems), "out/before")  # doctest: +SKIP
        >>> both.difference(both[0].label, "out/before")  # doctest: +SKIP
    """
    file = traces_of(other)
    theirs = {trace.problem: trace for trace in read_rows(file, Trace) if trace.finish != "interrupted"}
    ours = [trace for trace in traces if trace.problem in theirs]
    if not ours:
        raise DataError(f"{file} has none of these {len(traces)} problems; route the same problems in both runs")
    second = judge(router, [theirs[trace.problem] for trace in ours])
    name = str(other)
    views = tuple(dataclasses.replace(view, policy=name) for view in second.views)
    return Comparison(
        [judge(router, ours), dataclasses.replace(second, label=name, family=name, setting=None, views=views)]
    )


def against_in_words(both: Comparison) -> str:
    """The paired difference of two runs, with its interval, on one line.

    Example:
        print(against_in_words(against(router, router.solve_all(problems), "out/before")))
    """
    ours, theirs = both
    cost = ours.cost.strong_tokens_per_problem - theirs.cost.strong_tokens_per_problem
    words = f"Against {theirs.label}, on the {len(ours.views)} problems of both: "
    if not cost and [view.verdict for view in ours.views] == [view.verdict for view in theirs.views]:
        return f"{words}nothing differs, neither which are right nor the strong tokens."
    if ours.accuracy is not None and theirs.accuracy is not None:
        found = both.difference(ours.label, theirs.label)
        low, high = (f"{100 * end:+.1f}" for end in (found.low or 0.0, found.high or 0.0))
        words += f"accuracy {100 * (found.value or 0.0):+.1f} points (95 %: {low} to {high}, paired by problem), "
    return f"{words}strong tokens a problem {cost:+.1f}."
