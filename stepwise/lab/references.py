"""Reference solutions of the lab: worded and ordered otherwise than any lab model's own, at three granularities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stepwise.errors import DataError
from stepwise.lab.families import FAMILIES

if TYPE_CHECKING:
    from stepwise.lab.operations import Operation
    from stepwise.lab.problems import LabProblem

Granularity = Literal["full", "compressed", "regrouped"]
_PLAIN = {"gain": 1, "more_than": 1, "lose": -1, "fewer_than": -1}


def reference(problem: LabProblem, granularity: Granularity = "full") -> str:
    r"""A right solution in a textbook's words, ending in a box.

    "full": every count, two operations a paragraph, result before the work. "compressed": three operations a sentence,
    no counts between. "regrouped": another valid path, in which runs of gains and losses are netted first.

    >>> from stepwise.lab import generate
    >>> reference(generate("test", 1)[0], "compressed").splitlines()[-1]
    'Hence the result: \\boxed{13}'
    """
    makers = {"full": _full, "compressed": _compressed, "regrouped": _regrouped}
    if granularity not in makers:
        raise DataError(f"granularity {granularity!r} is not one of {', '.join(makers)}")
    values = problem.values()
    return "\n\n".join([*makers[granularity](problem, values), rf"Hence the result: \boxed{{{values[-1]}}}"])


def _reason(operation: Operation, before: int, items: str) -> str:
    return FAMILIES[operation.family].reason.format(**operation.fields(before, items))


def _full(problem: LabProblem, values: list[int]) -> list[str]:
    before = [problem.start, *values[:-1]]
    sentences = [
        f"We reach {after} from {b} since {_reason(o, b, problem.items)}."
        for o, b, after in zip(problem.operations, before, values, strict=True)
    ]
    return [" ".join(sentences[i : i + 2]) for i in range(0, len(sentences), 2)]


def _compressed(problem: LabProblem, values: list[int]) -> list[str]:
    shorts = [FAMILIES[o.family].short.format(**o.fields(problem.start, problem.items)) for o in problem.operations]
    groups = [shorts[i : i + 3] for i in range(0, len(shorts), 3)]
    return [f"{f'Start at {problem.start}' if i == 0 else 'From there'}, {', '.join(g)}." for i, g in enumerate(groups)]


def _regrouped(problem: LabProblem, values: list[int]) -> list[str]:
    sentences, before, i = [], problem.start, 0
    while i < len(problem.operations):
        j, net = i, 0
        while j < len(problem.operations) and problem.operations[j].family in _PLAIN:
            net += _PLAIN[problem.operations[j].family] * problem.operations[j].params[0]
            j += 1
        if j - i > 1:
            sentences.append(
                f"Together the next {j - i} changes come to {net:+d}, which takes {before} to {values[j - 1]}."
            )
        else:
            j = i + 1
            reason = _reason(problem.operations[i], before, problem.items)
            sentences.append(f"Because {reason}, {before} turns into {values[i]}.")
        before, i = values[j - 1], j
    return sentences
