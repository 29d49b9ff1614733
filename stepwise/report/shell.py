"""What all reports share: the columns of the table, the frame of a page, and what it has room for.

A page is one HTML file that loads nothing. A content security policy allows its one script, by its hash, and no other
source of anything. Nothing is measured here: the caller fills in a `Report` and hands it to `write_report` or
`summary_table`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import Field

from stepwise.errors import redact
from stepwise.io import write_text
from stepwise.records import record
from stepwise.report.words import MISSING, count, interval, percent, quantity
from stepwise.routing.compare import PolicyRow, TraceView

T = TypeVar("T")

LAB_NOTICE = (
    "Lab figures: measured on the embedded test bed, generated problems and tiny models that are wrong in a known way. "
    "They compare methods with one another and do not predict accuracy or savings on real models."
)

FINISH_WORDS: dict[str, str] = {
    "": "still open",
    "answer": "answered",
    "capped": "answered, with steps that a cap kept from the strong model",
    "eos": "stopped without an answer",
    "length": "a step ran out of tokens",
    "repeat": "repeated itself",
    "error": "a model failed",
    "steps": "reached the step limit",
    "budget": "budget spent",
    "interrupted": "interrupted",
}


@record(allow_inf_nan=False)
class Report:
    """Everything one page shows.

    `meta` are short facts in the order to show them (what was run, config hash, models, a date if any); `notes` are
    paragraphs. `lab` says that the figures come from the embedded test bed: the page and the table then say so.

    Example:
        >>> Report("Two policies", meta={"seed": "0"}).meta
        {'seed': '0'}
    """

    title: str
    subtitle: str = ""
    rows: tuple[PolicyRow, ...] = ()
    traces: tuple[TraceView, ...] = ()
    meta: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lab: bool = False


# ----- words and numbers


def badge(author: str) -> tuple[str, str]:
    """The colour class of an author (any name but the three known roles is "other"), and the letter that tells authors
    apart without colour.

    >>> badge("weak"), badge("openai/gpt")
    (('weak', 'W'), ('other', 'O'))
    """
    kind = author if author in ("weak", "strong", "intervention") else "other"
    return kind, next((char.upper() for char in author if char.isalnum()), "?")[0]


# ----- the table


class _Column(NamedTuple):
    """One column: its heading, what it means, how a row is written in it, and the value it is sorted by.

    Where there is little room, as in a terminal of 80 columns, only those that are not `extra` are shown.
    """

    title: str
    hint: str
    text: Callable[[PolicyRow], str]
    value: Callable[[PolicyRow], float | str | None]
    extra: bool = False


def _of(field: str, write: Callable[[Any], str]) -> tuple[Callable[[PolicyRow], str], Callable[[PolicyRow], Any]]:
    """How a field of a row is written, and its value."""
    value = attrgetter(field)
    return lambda row: write(value(row)), value


COLUMNS: tuple[_Column, ...] = (
    _Column("Policy", "the rule that keeps or escalates, and its setting", *_of("policy", str)),
    _Column("Accuracy", "share of problems answered right", *_of("accuracy", percent)),
    _Column("95 % interval", "of the accuracy, in percent", interval, lambda row: row.accuracy_low, extra=True),
    _Column("Strong share", "share of the kept tokens that the strong model wrote", *_of("strong_share", percent)),
    _Column("Strong tokens", "tokens that the strong model generated", *_of("strong_tokens", count), extra=True),
    _Column(
        "All tokens", "tokens that both models generated, discarded drafts included", *_of("generated_tokens", count)
    ),
    _Column(
        "Parameter tokens",
        "number of weights times tokens, scorer and prefill included",
        *_of("parameter_tokens", quantity),
        extra=True,
    ),
    _Column("Calls", "requests to the models", *_of("calls", count)),
    _Column(
        "Seconds",
        "wall-clock time of a run in one go",
        *_of("seconds", lambda value: MISSING if value is None else f"{value:,.{1 if value < 100 else 0}f}"),
    ),
)


def columns_of(rows: Sequence[PolicyRow]) -> list[_Column]:
    """The columns of a table of `rows`; one in which nothing is known is left out.

    >>> row = PolicyRow("Never", "never", None, 0.4, 0.3, 0.5, 0.0, 0, 900, None, 60, None, n=10)
    >>> [column.title for column in columns_of([row])][-2:]
    ['All tokens', 'Calls']
    """
    return [column for column in COLUMNS if not rows or any(column.text(row) != MISSING for row in rows)]


def caption(rows: Sequence[PolicyRow]) -> str:
    """How many problems stand behind the rows, and how many were lost.

    >>> caption([PolicyRow("Never", "never", None, 0.4, 0.3, 0.5, 0.0, 0, 900, None, 60, None, n=10, failed=1)])
    '10 problems per policy; totals over all of them. Lost to failures, counted as wrong: 1 under Never.'
    """
    lost = ", ".join(f"{row.failed:,} under {row.policy}" for row in rows if row.failed)
    return _sizes(rows) + (f" Lost to failures, counted as wrong: {lost}." if lost else "")


def _sizes(rows: Sequence[PolicyRow]) -> str:
    sizes = sorted({row.n for row in rows})
    if not sizes:
        return "No policy was measured."
    if len(sizes) == 1:
        return f"{sizes[0]:,} problem{'s' if sizes[0] > 1 else ''} per policy; totals over all of them."
    return f"{sizes[0]:,} to {sizes[-1]:,} problems per policy; totals over a policy's own problems."


def remarks(views: Sequence[TraceView]) -> list[str]:
    r"""What may lie behind a low accuracy, a line for each policy and cause: answers without a box, solutions that were
    cut, steps that a cap kept from the strong model. Causes of less than a twentieth of the solutions are left out.

    Example:
        >>> from stepwise.types import Problem, Trace
        >>> remarks([TraceView(Trace(Problem("p", "1 + 1?"), finish="eos"), "Never")])
        ['Never: 1 of 1 solutions has no answer in a box; ask for \\boxed{} in the prompt.']
    """
    lines = []
    for policy in dict.fromkeys(view.policy for view in views):
        own = [view for view in views if view.policy == policy]
        traces = [view.trace for view in own if view.trace.finish not in ("error", "interrupted")]
        capped = [trace for trace in traces if trace.finish in ("capped", "budget") or "budget." in trace.note]
        none = "" if any(view.escalated for view in own) else ", so that nothing was escalated"
        causes = (
            (
                "no answer in a box; ask for \\boxed{} in the prompt",
                [t for t in traces if t.answer is None and t.finish not in ("length", "steps")],
            ),
            (
                "a step cut; raise sampling.max_step_tokens, or the context of the model",
                [t for t in traces if t.finish == "length"],
            ),
            ("come to the limit of steps; raise routing.max_steps", [t for t in traces if t.finish == "steps"]),
            (f"met a cap{none}, such as: {capped[0].note if capped else ''}", capped),
        )
        for cause, found in causes:
            if found and 20 * len(found) >= len(own):
                has = "has" if len(found) == 1 else "have"
                lines.append(f"{policy}: {len(found)} of {len(own)} solutions {has} {cause}.")
    return lines


# ----- the page


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Templates of this package with autoescape on for every file; an unknown name in a template is an error.

    >>> environment().from_string("{{ text }}").render(text="1 < 2")
    '1 &lt; 2'
    """
    loader = PackageLoader("stepwise.report", "templates")
    result = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Coordinates: with one digit behind the point and none where it is 0, inside a path with one, and a line of places.
    result.filters |= {
        "px": lambda x: f"{x:.1f}".removesuffix(".0"),
        "fixed": "{:.1f}".format,
        "joined": lambda points: "L".join(f"{x:.1f} {y:.1f}" for x, y in points),
    }
    result.globals |= {
        "kind": lambda name: badge(name)[0],
        "letter": lambda name: badge(name)[1],
        "clean": redact,
        "finish_words": FINISH_WORDS,
    }
    return result


def draw(figure: str, /, **values: Any) -> Markup:
    """The drawing of that name in figures.svg.jinja.

    >>> draw("nothing", words="No value is known.")
    Markup('<p class="muted">No value is known.</p>')
    """
    return Markup(getattr(environment().get_template("figures.svg.jinja").module, figure)(**values))  # noqa: S704


def resource(name: str) -> str:
    """Text of a file that ships beside the templates (CSS or JavaScript).

    >>> "font" in resource("page.css")
    True
    """
    return files("stepwise.report").joinpath("templates", name).read_text(encoding="utf-8")


def write_page(
    path: str | Path,
    template: str,
    *,
    title: str,
    subtitle: str = "",
    meta: Mapping[str, Any],
    notes: Sequence[str] = (),
    lab: bool = False,
    scripts: Sequence[str],
    styles: Sequence[str] = ("page.css",),
    **values: Any,
) -> Path:
    """Write a page to `path` and return the path; missing folders are made. The file appears whole or not at all.

    `template` extends base.html.jinja; the files `scripts` become one script in one scope. Facts in `meta` that are
    None or empty are left out. `lab` says that the figures come from the embedded test bed; the page then says so.

    Example:
        page = "training.html.jinja"
        write_page("out/report.html", page, title="GRPO", meta={"seed": 0}, scripts=["common.js"], **values)
    """
    script = '"use strict";\n(() => {\n' + "\n".join(resource(name) for name in scripts) + "})();\n"
    text = (
        environment()
        .get_template(template)
        .render(
            title=title,
            subtitle=subtitle,
            meta={name: redact(str(value)) for name, value in meta.items() if value not in (None, "")},
            notes=[redact(note) for note in notes],
            lab_notice=LAB_NOTICE if lab else "",
            css=Markup("".join(resource(name) for name in styles)),  # noqa: S704
            script=Markup(script),  # noqa: S704
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **values,
        )
    )
    write_text(path, text)
    return Path(path)


def first_of_each(items: Sequence[T], limit: int, kind: Callable[[T], object]) -> list[T]:
    """At most `limit` items in their order: the first few of every kind, so that each kind can be looked at.

    Example:
        >>> first_of_each(["a1", "a2", "a3", "b1"], 2, lambda name: name[0])
        ['a1', 'b1']
    """
    if len(items) <= limit:
        return list(items)
    ranks: dict[object, int] = {}
    order = []
    for position, item in enumerate(items):
        ranks[kind(item)] = ranks.get(kind(item), 0) + 1
        order.append((ranks[kind(item)], position))
    return [items[position] for position in sorted(position for _, position in sorted(order)[:limit])]


def of_the_lab(run: Mapping[str, Any], *roles: str) -> bool:
    """Whether the configuration in a run's card names one of the lab's models for one of these roles.

    >>> of_the_lab({"config": {"models": {"weak": {"model": "llamacpp/lab-weak"}}}}, "weak", "strong")
    True
    """
    models = run.get("config", {}).get("models", {})
    return any(str(models.get(role, {}).get("model", "")).startswith("llamacpp/lab-") for role in roles)
