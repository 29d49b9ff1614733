"""In a terminal, with rich: a trace, the table of a report, what a critic says of an attempt, and a collection.

Control characters in what models write are shown, never sent to the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, takewhile
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stepwise.errors import redact, visible
from stepwise.report.shell import FINISH_WORDS, LAB_NOTICE, Report, badge, caption, columns_of, remarks
from stepwise.routing.metrics import cost_of
from stepwise.types import Intervention, Problem, Step, Trace

COLOURS = {"weak": "color(33)", "strong": "color(208)", "intervention": "color(36)", "other": "color(245)"}
BAR_CELLS = 8
FULL_WIDTH = 124  # the whole table, with the longest names of the built-in policies
_RIGHT, _WRONG = "color(34)", "color(160)"
_MARKS = {True: ("✓", "right", _RIGHT), False: ("✗", "wrong", _WRONG), None: ("·", "not checked", "dim")}
_LONGEST = 160  # characters of a step that is shown in short
_OF = {  # what the rows of a count are a share of
    "rollouts without a text": "rollouts",
    "failed attempts": "rollouts",
    "errors located": "failed attempts",
    "attempts that the critic finds right": "failed attempts",
    "localizations that failed": "failed attempts",
    "proposals that failed": "candidates",
    "candidates that leak": "candidates",
    "answer steps left out": "candidates",
    "candidates in no solver's form": "candidates",
    "candidates with a false equation": "candidates",
    "candidates proposed twice, or not guided": "candidates",
    "candidates guided": "candidates",
    "guided rollouts that end right": "guided rollouts",
    "guided rollouts with an invented output": "guided rollouts",
    "fresh rollouts that end right": "fresh rollouts",
    "examples": "failed attempts",
    "examples with no right fresh rollout": "examples",
}


# ----- traces


def show_trace(trace: Trace, console: Console | None = None) -> None:
    """Print a trace: each step in its author's colour with its score, its discarded drafts dimmed, and how it ended.

    Lines wrap at the console's width. Control characters in model output are shown, never sent to the terminal.

    Example:
        sw.report.show_trace(router.solve_all([problem])[0])
    """
    parts = [*_question(trace.problem), *_steps(trace), *_drafts(trace.abandoned, "abandoned draft"), _ending(trace)]
    _print_all(console or Console(), parts)


class StepStream:
    """Prints one trace after the other while they are made: call it with what there is of a trace, as often as you
    like, and it prints what is new, as `show_trace` prints it.

    A trace that goes on otherwise than it was printed (the strong model solves the problem anew) is printed anew.

    Example:
        traces = router.solve_all(problems, on_step=StepStream())  # prints steps as they come
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
        new += _steps(trace, len(self._shown))
        if trace.finish:
            new += [*_drafts(trace.abandoned, "abandoned draft"), _ending(trace), ""]
        _print_all(self._out, new)
        self._problem, self._shown = trace.problem, trace.steps


def _question(problem: Problem) -> Iterator[RenderableType]:
    yield printable(problem.id, "bold")
    yield Padding(printable(problem.question), (0, 0, 1, 2))


def _steps(trace: Trace, first: int = 0) -> Iterator[RenderableType]:
    for index, step in enumerate(trace.steps[first:], start=first):
        yield from _drafts(step.discarded, "discarded draft")
        yield _heading(step, f"step {index}")
        yield _indented(step.text, COLOURS[badge(step.author)[0]])
        if step.decision:
            yield _indented(step.decision, "dim italic")


def _drafts(drafts: Sequence[Step], title: str) -> Iterator[RenderableType]:
    for draft in drafts:
        yield _heading(draft, title, dim=True)
        yield _indented(draft.text, "dim strike")


def _heading(step: Step, title: str, dim: bool = False) -> Text:
    """Badge, author, model and score of a step on one line."""
    kind, letter = badge(step.author)
    colour = COLOURS[kind] + (" dim" if dim else "")
    parts = [(f" {letter} ", f"{colour} reverse bold"), (f" {step.author}", colour)]
    parts.append((f"  {title}", "dim"))
    if step.usage.model:
        parts.append((f"  {step.usage.model}", "dim"))
    if step.score is not None:
        cells = round(BAR_CELLS * step.score)
        bar = "█" * cells + "░" * (BAR_CELLS - cells)
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


def _print_all(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print without markup, wrapped at the console's width."""
    for part in parts:
        console.print(part, markup=False, highlight=False, soft_wrap=False)


def _indented(value: str, style: str = "") -> Padding:
    """`printable`, under the heading of its step."""
    return Padding(printable(value, style), (0, 0, 0, 4), expand=False)


def printable(value: str, style: str = "") -> Text:
    r"""`value` for rich, without markup; its control characters, save line feed and tab, as visible escapes.

    >>> printable("a [bold]word[/bold]\x1b[2J").plain
    'a [bold]word[/bold]\\x1b[2J'
    """
    return Text(visible(value), style=style)


# ----- what a critic says


def show_localization(steps: Sequence[str], result: Any, console: Console) -> None:
    """Print each step with its verdict and what it should be, the first error set apart.

    `result` is the prediction of an ErrorLocalizer without a failure.

    Example:
        show_localization(steps, localizer(problem=problem, steps=steps), Console())
    """
    _print_all(console, _verdicts(steps, result))


def show_intervention(steps: Sequence[str], repair: Intervention, review: Any, console: Console) -> None:
    """Print a proposed step, what its self-check said (None: there was none), and the attempt repaired up to there.

    Example:
        result = proposer(problem=problem, steps=steps, first_error=3)
        show_intervention(steps, result.intervention, None, Console())
    """
    style = COLOURS["intervention"]
    parts: list[RenderableType] = [
        "",
        printable(f"The attempt up to there, with a new step {repair.location}:", "bold"),
    ]
    for index, step in enumerate(steps[: repair.location]):
        parts += [printable(f"  step {index}", "dim"), _indented(step)]
    parts += [printable(f"→ step {repair.location}  intervention", f"{style} bold"), _indented(repair.content, style)]
    if review is not None:
        faults = {
            "holds the final answer": review.contains_answer,
            "misses a key insight": review.misses_insight,
            "comes too late": review.too_late,
        }
        words = ", ".join(f"{name}: {'yes' if true else 'no'}" for name, true in faults.items())
        parts.append(_indented(f"self-check: {words}", _WRONG if any(faults.values()) else "dim"))
    _print_all(console, parts)


def _verdicts(steps: Sequence[str], result: Any) -> Iterator[RenderableType]:
    first, scores = result.first_error, result.get("scores")
    # The rows that name step 0, 1, ... in order, as far as they do.
    checks = {row.step: row for row, _ in takewhile(lambda pair: pair[0].step == pair[1], zip(result.checks, count()))}
    for index, step in enumerate(steps):
        verdict = result.verdicts[index] if index < len(result.verdicts) else None
        mark, word, style = _MARKS[verdict]
        if index == first:
            mark, word, style = "✗", "FIRST ERROR", f"{_WRONG} bold"
            if result.checks and result.critical_error in (None, first):
                word += ", made up for by a later step" if result.critical_error is None else ", never recovered from"
            yield ""
        elif index == result.critical_error:
            word += ", critical error"
        score = f"  {scores[index]:.2f}" if scores else ""
        yield printable(f"{mark} step {index}  {word}{score}", style)
        yield _indented(step, "" if index == first or verdict else "dim")
        row = checks.get(index)
        if row is not None and row.verdict == "wrong":
            yield _indented(f"it says {row.quote}; it should be {row.expected}", style)
        elif index == first and result.localization.reason:
            yield _indented(result.localization.reason, style)
        if index == first:
            yield ""
    if first is None:
        yield ""
        yield printable(f"Every step is right (of {len(steps)}).", f"{_RIGHT} bold")


# ----- tables


def summary_table(report: Report, width: int | None = None) -> Table:
    """The table of the report's page, for `rich.print`; lab figures are called that below it.

    On a console narrower than `FULL_WIDTH` columns (`width`), only the columns that matter most.

    Example:
        rich.print(sw.report.summary_table(report))
    """
    below = "\n".join([caption(report.rows) + (f" {LAB_NOTICE}" if report.lab else ""), *remarks(report.traces)])
    table = Table(
        title=printable(report.title), caption=printable(below), box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold"
    )
    table.caption_style, table.caption_justify = "dim", "left"
    shown = [c for c in columns_of(report.rows) if not c.extra or width is None or width >= FULL_WIDTH]
    for i, column in enumerate(shown):
        table.add_column(column.title, justify="left" if i == 0 else "right")
    for row in report.rows:
        table.add_row(*(printable(column.text(row)) for column in shown))
    return table


def funnel_table(counts: Mapping[str, int]) -> Table:
    """What became of the attempts of a collection, with the share of each stage in the one it comes from.

    >>> funnel_table({"rollouts": 200, "failures": 118, "examples": 31}).row_count
    3
    """
    table = Table(title="What became of the attempts", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.caption, table.caption_justify = "Shares of the same stage do not overlap.", "left"
    table.add_column("stage")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    for name, number in counts.items():
        whole = _OF.get(name, "")
        share = f"{number / counts[whole]:.0%} of {whole}" if counts.get(whole) else ""
        table.add_row(name, f"{number:,}", share, style="bold" if name == "examples" else "")
    return table


def side_by_side(examples: Iterable[Any], failures: Mapping[str, Any]) -> Table:
    """Each example of a collection in short: the step that was wrong, and the intervention in its place.

    `examples` are `data.examples.Example`s, `failures` the `FailedAttempt`s by id.

    Example:
        Console().print(side_by_side(read_examples("out/int/dataset.jsonl")[:5], failures))
    """
    table = Table(title="Wrong step and intervention", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("attempt", overflow="fold")
    table.add_column("step", justify="right")
    table.add_column("wrong step", ratio=1)
    table.add_column("intervention", ratio=1)
    table.add_column("right", justify="right")
    for example in examples:
        location = len(example.prefix)
        failure = failures[example.parents["failure"]]
        wrong, better = _shortened(failure.steps[location]), _shortened(example.intervention)
        cells = (
            printable(wrong),
            printable(better, COLOURS["intervention"]),
            f"{example.successes} of {example.guided}",
        )
        table.add_row(printable(failure.id), str(location), *cells)
    return table


def _shortened(text: str) -> str:
    """`text` on one line, cut behind `_LONGEST` characters."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
