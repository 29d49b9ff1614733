r"""A generative reward model (`[scorer] kind = "generative"`) on solutions with labels by people, row by row.

--data has ProcessBench's columns; --rows (a JSON list of 0-based rows) says which are taken, --n how many. What is said
of a row is kept in rows.jsonl with its critiques, so that it may be killed at any moment and goes on there. Printed:

  came to a verdict   share of the critiques that did so by themselves, before they had all the tokens they may have
  F1                  of first errors, ProcessBench's: the first step below .5; nothing is fitted
  constant            the best F1 that can be had without reading the solution, in hindsight (`blind_f1`)
  per step            tokens written and read, and seconds of this process
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from pydantic import PositiveInt

from stepwise.config import ScorerConfig
from stepwise.data.localization import Outcome, above_constant, blind_f1, count, first_below, mean_f1, position_prior
from stepwise.data.processbench import ProcessBenchRow, read_rows
from stepwise.models.scorers import GenerativeScorer, load_scorer
from stepwise.records import record
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import wilson
from stepwise.types import Usage


class _Options(Options):
    neutral = ("n", "threads")

    model: str
    """path of a GGUF"""
    data: Path
    """ProcessBench's columns"""
    rows: Path | None = None
    """JSON list of the rows of --data to take"""
    n: PositiveInt = 100
    """rows"""
    template: str = "thinkprm"
    """thinkprm, genprm, tips, or a file"""
    votes: PositiveInt = 1
    critique_tokens: PositiveInt = 256
    threads: PositiveInt = 1


@record()
class Row:
    """What was said of row `place`: a score for each step, and `critiques` of each step by all votes."""

    place: int
    scores: tuple[float, ...]
    critiques: tuple[str, ...]
    finished: int
    usage: Usage
    seconds: float
    error: str = ""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    args = run.args
    examples = read_rows(args.data)
    places = json.loads(args.rows.read_text()) if args.rows else range(len(examples))
    places = [*places][: args.n]
    done = {row.place: row for row in run.rows("rows.jsonl", Row) if row.place in places}
    todo = [place for place in places if place not in done]
    if todo:
        config = ScorerConfig(
            kind="generative", model=f"llamacpp/{args.model}", template=args.template, votes=args.votes,
            critique_tokens=args.critique_tokens, threads=args.threads, context=8192, sequences=args.votes,
        )  # fmt: skip
        scorer = load_scorer(config)
        assert isinstance(scorer, GenerativeScorer)
        with progress("rows", len(todo)) as advance:
            for place in todo:
                item = (examples[place].problem, [step.text for step in examples[place].trace.steps])
                start = time.process_time()
                scored = scorer.score_detailed([item])[0]
                seconds = time.process_time() - start
                said = [verdict for step in scorer.verdicts(*item) for verdict in step]
                critiques, finished = tuple(each.critique for each in said), sum(each.finished for each in said)
                done[place] = Row(place, tuple(scored.scores), critiques, finished, scored.usage, seconds, scored.error)
                run.write("rows.jsonl", done[place])
                advance(1)
        scorer.close()
    _show(run, [done[place] for place in places], [examples[place] for place in places])


def _show(run: Run[_Options], rows: list[Row], examples: list[ProcessBenchRow]) -> None:
    outcomes = [Outcome(first_below(row.scores, 0.5), row.error) for row in rows]
    counts = count(outcomes, examples)
    f1, blind = mean_f1([counts]), blind_f1(position_prior(examples))
    verdicts, finished = sum(len(row.critiques) for row in rows), sum(row.finished for row in rows)
    share, low, high = wilson(finished, verdicts)
    steps = sum(len(example.trace.steps) for example in examples)
    spent = sum((row.usage for row in rows), Usage())
    run.say(f"{run.args.template}, {run.args.votes} votes: {counts.wrong} wrong and {counts.right} right solutions")
    run.say(f"came to a verdict: {share:.0%} of {verdicts} critiques (95 %: {low:.0%} to {high:.0%})")
    run.say(f"F1 {f1.value:.1f} (95 %: {f1.low:.1f} to {f1.high:.1f})" if f1 else "no F1: one class is missing")
    run.say(f"constant: F1 {0 if blind is None else blind:.1f} at most")
    run.say(
        f"first errors: {above_constant(outcomes, examples)}; {counts.cleared} of {counts.right} right ones cleared"
    )
    run.say(
        f"per step: {spent.generated_tokens / steps:.0f} tokens written, {spent.evaluated_tokens / steps:.0f} read, "
        f"{sum(row.seconds for row in rows) / steps:.1f} s; {sum(bool(row.error) for row in rows)} rows failed"
    )


if __name__ == "__main__":
    raise SystemExit(main())
