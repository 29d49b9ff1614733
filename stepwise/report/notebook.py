"""In a notebook: HTML of traces, comparisons and configurations on a light or a dark ground, and as text for `print`;
traces as a table of data.

Fragments are self-contained, without a script: text takes the colour of the notebook, and every rule of the style
starts with `.stepwise-trace`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from markupsafe import Markup
from rich.console import Console

from stepwise.config.errors import FrozenConfig
from stepwise.errors import MissingDependencyError, redact
from stepwise.models.reservations import cost_at
from stepwise.records import items_of
from stepwise.report.shell import FINISH_WORDS, caption, columns_of, environment, resource
from stepwise.report.terminal import show_trace
from stepwise.report.words import verdict_word
from stepwise.routing.compare import Comparison, Measured, TraceView, in_words, judged
from stepwise.routing.metrics import cost_of
from stepwise.types import Trace, Traces, Usage

_Priced = tuple[TraceView, Mapping[str, Any]]
_MAX_TRACES = 50  # of a list, that a notebook shows


def html_of(value: Any) -> str:
    """What a notebook shows of a trace, a list of traces, a comparison or a configuration, and of others what `print`
    shows.

    Example:
        html_of(router.solve_all(problems))  # what a notebook shows of its last line anyway
    """
    match value:
        case Trace():
            return str(view_html(TraceView(value)))  # a plain string: Markup would escape what a caller adds to it
        case Comparison():
            table = [measured.row for measured in value]
            return _fragment(
                "comparison", rows=table, columns=columns_of(table), caption=caption(table), words=in_words(value)
            )
        case FrozenConfig():
            settings = list(_settings(value))
            changed, same = (
                [(key, text) for key, text, is_default in settings if is_default == x] for x in (False, True)
            )
            return _fragment("config", name=type(value).__name__, changed=changed, same=same)
        case Traces():
            rows = [
                (row, view_html(view, style=False)) for row, (view, _) in zip(_rows(value), _views(value), strict=True)
            ]
            right = sum(row["correct"] is True for row, _ in rows)
            return _fragment("traces", rows=rows[:_MAX_TRACES], total=len(rows), right=right, policy=value.policy)
    return str(Markup("<pre>{}</pre>").format(str(value)))


def text_of(value: Any) -> str:
    """What `print` shows of them.

    Example:
        >>> print(text_of(Traces([Trace(Problem("p", "1 + 1?", "2"), (Step("So 2.", "weak"),), "eos")], "Never")))
        1 trace under Never, 1 right
        p: no boxed answer, right (stopped without an answer), 1 step, 0 by the strong model, 0 strong tokens
    """
    match value:
        case Trace():
            shown = Console(file=io.StringIO(), width=100)
            show_trace(value, shown)
            return str(shown.file.getvalue().rstrip())  # type: ignore[attr-defined]
        case FrozenConfig():
            changed = [f"\n  {key} = {text}" for key, text, is_default in _settings(value) if not is_default]
            return f"{type(value).__name__}: as by default{', but for' if changed else ''}{''.join(changed)}"
        case Traces():
            rows = _rows(value)
            right, under = sum(row["correct"] is True for row in rows), f" under {value.policy}" if value.policy else ""
            lines = [f"{_count(len(rows), 'trace')}{under}, {right:,} right"]
            for row in rows[:_MAX_TRACES]:
                answer = "no boxed answer" if row["answer"] is None else f"answer {row['answer']}"
                verdict = f", {verdict_word(row['verdict'])}" if row["verdict"] else ""
                lines.append(
                    f"{row['problem']}: {answer}{verdict} ({FINISH_WORDS[row['finish']]}), "
                    f"{_count(row['steps'], 'step')}, {row['strong_steps']} by the strong model, "
                    f"{_count(row['strong_tokens'], 'strong token')}"
                )
            return "\n".join(lines + ([f"and {len(rows) - _MAX_TRACES:,} more"] if len(rows) > _MAX_TRACES else []))
    return repr(value)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def view_html(view: TraceView, style: bool = True) -> Markup:
    """A trace with policy and verdict; `style=False` leaves the style out, since one copy serves many fragments.

    >>> view = TraceView(Trace(Problem("p", "1 + 1?", "2"), (Step("So 2.", "weak"),), "eos"), "Never")
    >>> "So 2." in view_html(view, style=False)
    True
    """
    return Markup(  # noqa: S704
        _fragment(
            "trace",
            style,
            view=view,
            trace=view.trace,
            note=redact(view.trace.note),
            cost=cost_of([view.trace]),
            finish=FINISH_WORDS[view.trace.finish],
            verdict=verdict_word(view.verdict) if view.verdict else "",
        )
    )


def _fragment(part: str, style: bool = True, **values: Any) -> str:
    css = Markup(resource("trace.css")) if style else ""  # noqa: S704
    return environment().get_template("trace.html.jinja").render(part=part, css=css, **values)


def _settings(config: FrozenConfig, default: Any = None, before: str = "") -> Iterator[tuple[str, str, bool]]:
    """Each setting as (dotted key, as the command line takes it, value, whether it is the default)."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        usual = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        if isinstance(value, FrozenConfig):
            yield from _settings(value, usual if isinstance(usual, type(value)) else None, f"{before}{name}.")
        else:
            yield f"{before}{name}", redact(repr(value)), value == usual


# ----- tables of data


def traces_to_frame(traces: Iterable[Trace | TraceView | Measured], *, policy: str = "") -> Any:
    """A pandas DataFrame with a row for each trace.

    Columns: problem, policy, answer (in a box), gold, verdict ("" without a gold answer), correct (None there),
    answer_read_from (how the answer that was judged is marked: "box", "####", "answer is", ...), finish, note,
    steps and strong_steps (how many), solution, and for each of weak, strong and scorer its calls, tokens (generated;
    of the scorer: evaluated) and money (as in the ledger: a local model without a price costs 0; None where no price is
    known, as of traces that were read from a file). Discarded drafts count.

    Args:
        traces: of `solve_all`, or of a comparison (`sw.compare`), whose policies they are of.
        policy: for traces that do not say under which they were made.

    Raises `MissingDependencyError` without pandas, `DataError` for what holds no traces.

    Example:
        frame = sw.traces_to_frame(sw.compare(router, policies, problems))
        frame.groupby("policy")[["correct", "strong_tokens"]].mean()
    """
    rows = _rows(traces, policy)
    try:
        import pandas as pd  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingDependencyError(
            'traces_to_frame needs pandas; install it with: pip install "stepwise[data]"'
        ) from error
    return pd.DataFrame(rows)


def traces_to_dataset(traces: Iterable[Trace | TraceView | Measured], *, policy: str = "") -> Any:
    """A `datasets.Dataset` with the columns of `traces_to_frame`; raises `MissingDependencyError` without datasets.

    Example:
        sw.traces_to_dataset(router.solve_all(problems)).to_parquet("traces.parquet")
    """
    rows = _rows(traces, policy)
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise MissingDependencyError(
            'traces_to_dataset needs datasets; install it with: pip install "stepwise[data]"'
        ) from error
    return datasets.Dataset.from_list(rows)


def _rows(traces: Iterable[Trace | TraceView | Measured], policy: str = "") -> list[dict[str, Any]]:
    rows = []
    for view, prices in _views(traces, policy):
        trace, spent = view.trace, view.trace.usage
        row: dict[str, Any] = {
            "problem": trace.problem.id,
            "policy": view.policy,
            "answer": trace.answer,
            "gold": trace.problem.answer,
            "verdict": view.verdict,
            "correct": view.verdict == "CORRECT" if view.verdict else None,
            "answer_read_from": view.answer_read_from,
            "finish": trace.finish,
            "note": redact(trace.note),
            "steps": len(trace.steps),
            "strong_steps": sum(step.author == "strong" for step in trace.steps),
            "solution": trace.text,
        }
        for role in ("weak", "strong", "scorer"):
            usage = spent.get(role, Usage(cost=0.0))
            tokens = usage.evaluated_tokens if role == "scorer" else usage.generated_tokens
            row |= {f"{role}_calls": usage.calls, f"{role}_tokens": tokens}
            row[f"{role}_money"] = cost_at(usage, prices.get(role))
        rows.append(row)
    return rows


def _views(traces: Iterable[Trace | TraceView | Measured], policy: str = "") -> list[_Priced]:
    """The traces with policy, verdict and prices; raises `DataError` for what is none."""
    views: list[_Priced] = []
    policy = policy or (traces.policy if isinstance(traces, Traces) else "")
    prices = traces.prices if isinstance(traces, Traces) else {}
    for item in items_of(traces, (Trace, TraceView, Measured), "traces", "give what solve_all or sw.compare returned"):
        match item:
            case Measured():
                views += ((view, item.prices) for view in item.views)
            case TraceView():
                views.append((item, prices))
            case _:
                views.append((judged(item, policy), prices))
    return views
