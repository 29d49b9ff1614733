"""Close the loop: route problems, learn from what was escalated and from what failed, and route again.

Each round routes the training problems, collects interventions, trains the weak model on them ([sft]) and by
reinforcement ([rl]), makes the scorer anew on what it writes then (--refit), chooses the policy's setting anew on the
validation problems, and measures on test problems that no round has seen. Printed is what each round costs and buys:
strong tokens to recover --target of the gap that was there before the first round, and what the scorer is worth. A
round that makes the weak model worse is rolled back. Killed at any moment, the same command goes on where it was.
Writes rounds.jsonl, points.jsonl and a directory of every stage of every round.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import replace
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import ConfigDict, Field, PositiveInt

from stepwise.data.problems import SOURCES, load_problems
from stepwise.errors import BudgetExceededError, DataError
from stepwise.interventions.settings import CollectSettings
from stepwise.io import read_rows
from stepwise.lab.problems import generate
from stepwise.models.caps import uncapped
from stepwise.report import Report, write_report
from stepwise.report.shell import of_the_lab
from stepwise.rounds import LoopPoint, LoopResult, LoopRound, LoopSettings, loop
from stepwise.rounds.learning import TRACES
from stepwise.rounds.results import read_loop
from stepwise.rounds.scoring import LoopScorer
from stepwise.routing.compare import TraceView
from stepwise.routing.deciding import label_of
from stepwise.routing.policies import Always, Never
from stepwise.runs.shell import ColumnNames, Options, Run, check_files, one_of, program
from stepwise.stats import Interval, bootstrap
from stepwise.types import Problem, Usage

_WHERE = one_of("Problems")
_ALONE = (label_of(Never()), label_of(Always()))


class _Options(Options, CollectSettings, LoopSettings):
    model_config = ConfigDict(strict=False)
    neutral = ("rounds",)

    collect: Annotated[CollectSettings, Parameter(parse=False)] = CollectSettings()
    """those of collecting are options of their own"""

    problems: Annotated[str | None, _WHERE] = Field(None, description=f"to train on: {SOURCES}")
    columns: ColumnNames = None
    lab: Annotated[PositiveInt | None, _WHERE] = None
    """N training problems of the lab, with its validation and test problems"""
    validation: str | None = None
    """other problems, to choose on"""
    test: str | None = None
    """other problems, to measure on"""
    n: PositiveInt = 100
    """validation and test problems, at most"""


def _sets(args: _Options) -> tuple[list[Problem], list[Problem], list[Problem]]:
    if args.problems is None:
        if args.validation or args.test:
            raise DataError("--validation and --test go with --problems; leave them out, or give all three")
        train, val, test = (
            [lab.problem for lab in generate(split, n)]
            for split, n in (("train", args.lab or 100), ("val", args.n), ("test", args.n))
        )
        return train, val, test
    if args.validation is None or args.test is None:
        raise DataError("--problems needs --validation and --test: files with other problems")
    validation, test = (
        load_problems(name, split="test", n=args.n, columns=args.columns) for name in (args.validation, args.test)
    )
    return load_problems(args.problems, split="train", columns=args.columns), validation, test


@program(_Options, doc=__doc__, same_run=uncapped)
def main(run: Run[_Options]) -> int:
    args, (train, validation, test) = run.args, _sets(run.args)
    check_files(run.config)
    collect = CollectSettings(**{name: getattr(args, name) for name in CollectSettings.model_fields})
    own = {name: getattr(args, name) for name in LoopSettings.model_fields if name != "collect"}
    settings = LoopSettings(**own, collect=collect)
    try:
        loop(train, run.config, run.directory, validation=validation, test=test, settings=settings)
    except (BudgetExceededError, KeyboardInterrupt):  # the rounds that are done are shown
        if (run.directory.path / "rounds.jsonl").exists():
            _show(run, read_loop(run.out), len(train))
        raise
    result = read_loop(run.out)
    _show(run, result, len(train))
    learned = sum(done.adapter is not None for done in result.rounds)
    return run.empty(learned, "no round learned anything that it kept; the lines above say why")


def _show(run: Run[_Options], result: LoopResult, trained_on: int) -> None:
    """A row a round; its setting was chosen on validation problems, and is measured here on the test problems."""
    args, rows, policy = run.args, [], run.config.routing.policy
    known = {row["round"] for row in run.rows("metrics.jsonl")}
    for done in result.rounds:
        weak = result.point(done.measured, _ALONE[0])
        routed = next(
            p for p in result.points if (p.round, p.part, p.row.setting) == (done.measured, "test", done.setting)
        )
        tokens = result.tokens_at_target(done.number, args.target)
        saved = _saved(result, done, args.target)
        rows.append((
            str(done.number), f"{weak.at().accuracy:.1%}", f"{done.setting:g}", f"{routed.at().accuracy:.1%}",
            f"{routed.at().cost:.1f}", "-" if tokens is None else f"{tokens:.1f}", _band(saved),
        ))  # fmt: skip
        if done.number in known:
            continue
        run.metrics(
            round=done.number,
            weak=weak.at().accuracy,
            routed=routed.at().accuracy,
            cost=routed.at().cost,
            at_target=tokens,
        )
    columns = ("Round", "Weak alone", "Setting", "Routed", "Strong tokens", "At the target", "Less than before")
    run.table(f"{policy} on {len(result.points[-1].right)} test problems, {trained_on} trained on", columns, rows)
    strong = result.point(0, _ALONE[1]).at()
    run.say(
        f"The strong model alone: {strong.accuracy:.1%} for {strong.cost:.1f} tokens a problem. At the target: strong "
        f"tokens a problem to recover {args.target:.0%} of the gap before round 1, by mixing settings. Less than "
        "before: the difference from round 0, with its 95 % interval over problems; one run is one seed of training."
    )
    for done in result.rounds[1:]:
        found = {"intervention": "failures", "routing": "escalations"}
        learned = ", ".join(f"{done.rows.get(origin, 0)} rows of {what}" for origin, what in found.items())
        bought = ", ".join(f"{role} {usage.generated_tokens:,}" for role, usage in sorted(done.spent.items()))
        run.say(f"Round {done.number} learned from {learned}; tokens written for it: {bought}.")
        if done.rolled_back:
            run.say("It was rolled back: the weak model alone became worse on validation problems.")
        if not done.held:
            run.say("No setting held the target on validation problems; the most accurate one was taken.")
        for note in done.notes:
            run.say(f"In round {done.number} {note}.")
    for done in result.rounds:
        if (scorer := done.scorer) is not None:
            run.say(_of_scorer(done.number, scorer))
    run.page(
        "report.html", lambda path: write_report(path, _report(run, result)), "what each round saves, step by step"
    )


def _report(run: Run[_Options], result: LoopResult) -> Report:
    """The frontier of every round, and the test problems that its policy solved, first those that became cheaper."""
    rows = [
        replace(point.row, policy=f"round {point.round}: {point.row.policy}", family=_family(point))
        for point in result.points
        if point.part == "test"
    ]
    views = [
        replace(view, policy=f"round {done.number}")
        for done in result.rounds
        for view in read_rows(run.out / f"round-{done.measured}" / TRACES, TraceView)
    ]
    spent = defaultdict[Problem, list[tuple[int, bool]]](list)
    for view in views:
        tokens = view.trace.usage.get("strong", Usage()).generated_tokens
        spent[view.trace.problem].append((tokens, view.verdict == "CORRECT"))

    def gain(problem: Problem) -> int:
        (before, was_right), (after, is_right) = spent[problem][0], spent[problem][-1]
        return before - after if was_right and is_right else 0

    views.sort(key=lambda view: (-gain(view.trace.problem), view.trace.problem.id, view.policy))
    models = run.config.models
    return Report(
        title="Routing, learning, routing again",
        subtitle="What a round of learning from escalations and failures saves on problems that it has not seen.",
        rows=tuple(rows),
        traces=tuple(views),
        meta={
            "weak model": models.weak.model, "strong model": models.strong.model, "scorer": run.config.scorer.title,
            "configuration": run.config.hash, "seed": str(run.config.seed),
        },
        lab=of_the_lab(run.config.model_dump(mode="json"), "weak"),
    )  # fmt: skip


def _family(point: LoopPoint) -> str:
    """One line in the plot for each round; both models alone are points of their own before the first."""
    return point.row.family if point.row.anchor and not point.round else f"round {point.round}"


def _saved(result: LoopResult, done: LoopRound, target: float) -> Interval | None:
    """Strong tokens at the target before round 1 less those after a round, paired by problem."""
    if not done.measured:
        return None

    def statistic(index: Any) -> float | None:
        before, now = (result.tokens_at_target(number, target, index) for number in (0, done.number))
        return None if before is None or now is None else before - now

    return bootstrap(statistic, len(result.points[-1].right), samples=500)


def _of_scorer(number: int, scorer: LoopScorer) -> str:
    """What a round's scorer is worth, in words."""
    made = scorer.note or (f"{scorer.kind} fitted to {scorer.labels} solutions" if scorer.labels else "as configured")
    own, before = (
        "not measured" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
        for found in (scorer.auroc, scorer.configured)
    )  # fmt: skip
    return (
        f"The scorer after round {number}: {made}. AUROC of right steps against first errors on the weak model's own "
        f"solutions of validation problems ({scorer.first_errors} with an error): {own}; [scorer] as configured: "
        f"{before}."
    )


def _band(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.value:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


if __name__ == "__main__":
    sys.exit(main())
