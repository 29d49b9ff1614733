"""Fit the routing model to traces: chances of a right step, how long solutions are, what scores mean, how sure that is.

Traces come from --traces FILE (rows of a routing run's traces.jsonl, or rows in ProcessBench's columns with `scores`)
or are made here: --problems FILE (whatever `stepwise route` takes) or --lab N has the weak model solve problems, once
alone and once with steps by the strong model at random places, and scores the steps. Problems of the lab are labelled
by its checker; others need gold answers and --recovery, and what labels would say is estimated (EM) where it can be; if
not, label the traces_*.jsonl. Writes fit.json and calibration.svg. A killed run goes on where it was.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError
from rich.table import Table

from stepwise import routing
from stepwise.config import Config
from stepwise.data.problems import SOURCES, named_problems
from stepwise.errors import DataError
from stepwise.io import read_rows, write_text
from stepwise.models.scorers import load_scorer
from stepwise.records import from_json
from stepwise.report.charts import calibration_svg
from stepwise.routing.planning import plan_routing
from stepwise.routing.policies import Never, Random
from stepwise.routing.policy import Policy
from stepwise.routing.pomdp.fit import RouterFit, fit_router
from stepwise.routing.pomdp.fit_data import STATES, FitTrace, from_lab_trace, from_row, from_trace, scored, unlabelled
from stepwise.routing.token_signals import as_token_signal
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.shell import ColumnNames, Options, Run, one_of, program
from stepwise.types import Problem, Trace

_STRONG_SHARE = 0.3  # of the steps in the traces that p_strong is counted on
_CHUNK = 64  # traces scored at a time


_WHERE = one_of("Problems", required=True)


class _Options(Options):
    traces: Annotated[tuple[Path, ...], _WHERE] = ()
    """JSON Lines files of traces"""
    problems: Annotated[str | None, _WHERE] = Field(None, description=f"solve problems: {SOURCES}")
    columns: ColumnNames = None
    lab: Annotated[PositiveInt | None, _WHERE] = None
    """solve N problems of a lab split and label the traces"""
    split: str = "train"
    """split of the problems"""
    n: PositiveInt | None = None
    """the first N problems"""
    labels: Literal["lab", "column", "none"] | None = None
    """with --traces: the lab's checker, the column label (index of the first wrong step, -1: none), or none"""
    prm: str | None = None
    """whose scores, where rows hold those of several reward models"""
    score: bool = False
    """score drafts that have no score with the scorer"""
    signal: str | None = None
    """in place of scores what comes with a draft: least_logprob, mean_logprob, entropy; over all steps so far with
    :worst or :mean behind it"""
    p_strong: float | None = None
    """chance of a right strong step, where it is known"""
    tokens_per_step: float | None = None
    """where the traces do not say"""
    bins: PositiveInt | None = None
    """of the score"""
    recovery: float | None = None
    """share of wrong traces that end right (no labels)"""


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    if args.traces:
        return []
    planned = plan_routing(config, _policies(config), _problems(args))
    weak = next(part for part in planned if part.role == "weak")
    return [*planned, replace(weak, role="scorer", generated_tokens=0)]


@program(_Options, doc=__doc__, plan=_plan)
def main(run: Run[_Options]) -> None:
    args, config = run.args, run.config
    labels = "lab" if args.lab else "none" if args.problems else args.labels
    if labels is None:
        raise DataError("--traces needs --labels: lab, column or none")
    signal = as_token_signal(args.signal, "--signal")
    traces = list(_read(run, args.traces, labels, signal)) if args.traces else _collected(run, signal)
    fit = fit_router(
        traces,
        weak=config.models.weak.model,
        strong=config.models.strong.model,
        scorer=signal.title if signal else args.prm or config.scorer.title,
        signal=signal,
        config=config.hash,
        splitter=config.prompt.splitter,
        labels=labels,
        p_strong=args.p_strong,
        tokens_per_step=args.tokens_per_step,
        bins=args.bins,
        max_steps=config.routing.max_steps,
        recovery=args.recovery,
        seed=config.seed,
    )
    fit.save(run.path("fit.json"))
    _show(run, fit)


def _collected(run: Run[_Options], signal: Any) -> list[FitTrace]:
    """Scored traces of problems, by the weak model alone and with strong steps at random places."""
    traces = list[Trace]()
    for policy in _policies(run.config):
        name = f"traces_{policy.name}.jsonl"
        done = {trace.problem.id for trace in run.rows(name, Trace)}
        todo = [problem for problem in _problems(run.args) if problem.id not in done]
        if todo:
            with routing.StepRouter.from_config(run.config) as loaded:
                router = loaded.with_policy(policy)
                for low in range(0, len(todo), _CHUNK):
                    part = todo[low : low + _CHUNK]
                    place = f"{policy.name}, {low + 1} to {low + len(part)} of {len(todo)}"
                    made = router.solve_all(part, description=place)
                    run.write(name, *(made if signal else scored(router.models.scorer, made)))
        traces += run.rows(name, Trace)
    fitted = from_lab_trace if run.args.lab else from_trace
    return [fitted(_by(signal, trace, name)) for trace in traces if trace.steps]


def _by(signal: Any, trace: Trace, where: str) -> Trace:
    """The trace with `signal` in place of its scores, where there is one."""
    if signal is None:
        return trace
    made = replace(trace, steps=signal.scored(trace.problem, trace.steps))
    drafts = [draft for step in made.steps for draft in (*step.discarded, step) if draft.author == "weak"]
    if any(draft.score is None and draft.text.strip() for draft in drafts):
        raise DataError(
            f"{where}, problem {trace.problem.id!r}: a draft does not say how sure its model was (token_stats), which "
            f"--signal {signal.name} needs; route with a model in this process, or fit to the scores of a scorer"
        )
    return made


def _read(run: Run[_Options], files: Sequence[Path], labels: str, signal: Any) -> Iterable[FitTrace]:
    """The traces of files in either form; raises `DataError` naming file and row."""
    for path in files:
        if not path.is_file():
            raise DataError(f"--traces {path}: no such file; make one with stepwise route")
        rows = read_rows(path, finished=True)
        routed = [i for i, row in enumerate(rows) if isinstance(row.get("problem"), dict)]
        truths = {i: rows[i].pop("label", None) for i in routed}
        traces = {i: _trace(rows[i], f"{path}, row {i + 1}") for i in routed}
        if run.args.score and traces:
            scorer = load_scorer(run.config.scorer, prompt=run.config.prompt, weak=run.config.models.weak)
            traces = dict(zip(traces, scored(scorer, list(traces.values())), strict=True))
        for i, row in enumerate(rows):
            where = f"{path}, row {i + 1}"
            if i not in traces and signal:
                raise DataError(f"{where}: it is no row of a routing run, which --signal needs")
            if i not in traces:
                if labels == "lab":
                    raise DataError(f"{where}: it is no row of a routing run, so the lab cannot check it")
                trace = from_row(row, where, run.args.prm)
                yield trace if labels == "column" else unlabelled(trace)
            elif traces[i].steps and traces[i].finish != "interrupted":
                yield _labelled(_by(signal, traces[i], where), labels, truths[i], where)


def _trace(row: dict[str, Any], where: str) -> Trace:
    try:
        return from_json(Trace, json.dumps(row))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}, field {field}: {first['msg']}, not {first['input']!r:.60}; mend that row") from None


def _labelled(trace: Trace, labels: str, truth: Any, where: str) -> FitTrace:
    """A routed trace with the labels there are; `truth` is what its column says, None where it has none."""
    if labels == "lab":
        return from_lab_trace(trace)
    if labels == "none" or truth is None:
        return from_trace(trace)
    if type(truth) is not int or not -1 <= truth < len(trace.steps):
        raise DataError(f"{where}, field label: {truth!r}; it must lie in -1..{len(trace.steps) - 1} (-1: none wrong)")
    return from_trace(trace, first_error=None if truth < 0 else truth, labelled=True)


def _policies(config: Config) -> list[Policy]:
    return [Never(), Random(_STRONG_SHARE, config.seed)]


def _problems(args: _Options) -> list[Problem]:
    if args.problems is not None and args.recovery is None:  # said before anything is spent
        raise DataError("--problems needs --recovery: the share of wrong traces that end right all the same; 0.0 where "
                        "a wrong step always spoils the answer")  # fmt: skip
    return named_problems(args.problems, args.split, args.n, args.lab, columns=args.columns)


def _show(run: Run[_Options], fit: RouterFit) -> None:
    """Print the figures with their intervals, and draw the calibration plot."""
    card = fit.card
    title = f"Fitted to {card.traces} traces of {card.problems} problems (configuration {card.config})"
    table = Table("", title=title, title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("95 %", justify="right")
    for key, name, given in (
        ("p_weak", "chance of a right draft after right steps", fit.p_weak),
        ("p_strong", "chance of a right strong step after right steps", fit.p_strong[0]),
        ("steps", "steps of a solution", None),
        ("tokens_per_step", "tokens of a step", fit.tokens_per_step),
        ("auroc", "AUROC of the score, wrong just now against right", None),
    ):
        if key in card.intervals:
            value, low, high = card.intervals[key]
            table.add_row(name, f"{value:.3f}", f"{low:.3f} to {high:.3f}")
        else:
            table.add_row(name, "" if given is None else f"{given:.3f}", "given")
    run.console.print(table)
    counts = ", ".join(f"{n} {state}" for n, state in zip(card.drafts, STATES, strict=True))
    run.say(f"Labelled drafts: {counts}; {card.strong_steps} strong steps after right ones.")
    if (lag := card.lag_correlation) is not None:
        remedy = f"; likelihood ratios are taken to the power {card.power:g}" if card.power < 1 else ""
        run.say(f"Neighbouring scores of right steps correlate by {lag:.2f}; the model takes that for 0{remedy}.")
    if held := card.held_out:
        run.say(
            f"On held-out problems: log-likelihood {held.log_likelihood:.3f} nats per draft ({held.without_scores:.3f} "
            f"without scores), AUROC of the belief in wrong just now {held.auroc:.3f}."
        )
        if pair := card.held_out_pair:
            run.say(
                f"There the memoryless belief on (least earlier score, score) has log-likelihood "
                f"{pair.log_likelihood:.3f} and AUROC {pair.auroc:.3f}."
            )
        write_text(run.path("calibration.svg"), calibration_svg(held.calibration, "Calibration on held-out problems"))
    else:
        run.say("Too few labels to measure the filter on held-out problems.")
    run.metrics(fit=str(run.path("fit.json")), p_weak=fit.p_weak, p_strong=fit.p_strong[0], traces=card.traces)
    run.say(f"The fit: {run.path('fit.json')}")


if __name__ == "__main__":
    sys.exit(main())
