"""From routed traces to rows that teach the weak model to ask for help: the warm start of RelayLLM (arXiv 2601.05167).

Where a step was escalated and that helped, a row ends with the marker, and what stands before is context; where it did
not help, with the draft. The weak model's own steps that stood are trained in one row for each trace. What the strong
model wrote is never trained. A step helped where its trace ended right and it says something else than the draft that
it replaced: another last number, or another text where there is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from stepwise.config import Config
from stepwise.data.examples import Example
from stepwise.errors import ConfigError, DataError
from stepwise.grading import Verdict, grade_many
from stepwise.types import Step, Trace

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def call_rows(traces: Iterable[Trace], cfg: Config, counts: Counter[str] | None = None) -> list[Example]:
    """Rows of the origins "call" and "kept" from traces that ended right, with the marker of [rl].

    A step that was escalated before there was a draft counts as one that helped. `counts` is added to. Raises
    ConfigError where no marker is set; DataError for a marker that stands in a question or a step, traces of another
    splitter, and where no row is a call or none is kept.

    Example:
        rows = call_rows(read_traces("out/route"), sw.Config.load(None, ["rl.marker=<|reserved_0|>"]))
    """
    marker, given = cfg.rl.marker, list(traces)
    if marker is None:
        raise ConfigError('rl.marker is not set; name a token that no text needs, such as "<|reserved_0|>" in the lab')
    counts = Counter() if counts is None else counts
    rows: list[Example] = []
    verdicts = grade_many([(trace.answer, trace.problem.answer) for trace in given])
    for number, (trace, verdict) in enumerate(zip(given, verdicts, strict=True)):
        name = trace.problem.id
        if trace.splitter != cfg.prompt.splitter:
            raise DataError(
                f"the trace of {name!r} has steps by the splitter {trace.splitter!r}, the configuration by "
                f"{cfg.prompt.splitter!r}; give the configuration that it was routed with"
            )
        if marker in trace.problem.question or any(marker in step.text for step in trace.steps):
            raise DataError(f"the trace of {name!r} holds the marker {marker!r} in its text; take another rl.marker")
        counts["traces"] += 1
        steps = trace.steps if verdict is Verdict.CORRECT else ()

        def row(what: str, place: int, text: str, trace: Trace = trace, name: str = f"{name}/t{number}") -> Example:
            foreign = [i for i in range(place) if what != "kept" or trace.steps[i].author != "weak"]
            return Example(
                f"{name}/{what}{place}", trace.problem.question, trace.problem.answer or "",
                tuple(step.text for step in trace.steps[:place]), text, "call" if what == "call" else "kept",
                {"problem": trace.problem.id}, {"weak": cfg.models.weak.model}, cfg.prompt.hash, cfg.hash, cfg.seed,
                successes=1, guided=1, with_reference=False, splitter=trace.splitter, foreign=tuple(foreign),
            )  # fmt: skip

        for place, step in enumerate(steps):
            draft = next((d for d in reversed(step.discarded) if d.author == "weak" and d.text.strip()), None)
            if step.author == "weak":
                counts["kept"] += 1
            elif draft is not None and _gist(draft) == _gist(step):
                counts["not needed"] += 1
                rows.append(row("draft", place, draft.text))
            else:
                counts["calls"] += 1
                rows.append(row("call", place, marker))
        if (last := max((i for i, step in enumerate(steps) if step.author == "weak"), default=-1)) >= 0:
            rows.append(row("kept", last, steps[last].text))
    if not counts["calls"] or not counts["kept"]:
        raise DataError(
            f"of {counts['traces']} traces those that ended right have {counts['calls']} steps that help was needed "
            f"for and {counts['kept']} that it was not; route more problems, or at another setting"
        )
    return rows


def _gist(step: Step) -> str:
    numbers = _NUMBER.findall(step.text)
    return str(numbers[-1]).replace(",", "") if numbers else " ".join(step.text.split())
