"""Route problems through a weak and a strong model, step by step; killed at any moment, it goes on where it was.

Problems come from a file (JSON Lines, JSON, CSV, parquet), a named set such as gsm8k, or a data set of the hub, in the
columns of GSM8K, MATH-500, AIME or our own (id, question, answer, reference); from standard input (--problems -: JSON
rows, or one question as plain text); or else from the lab. Every answer of a model is kept in answers.jsonl as it
comes, so a run that goes on repeats no step of the problems that were open.

A first look at two models of your own needs no configuration:

    stepwise route --weak WEAK.gguf --strong STRONG.gguf --problems gsm8k.jsonl

Without a scorer a step is escalated where the weak model was unsure of a token; that threshold is set on problems which
are left out of the table. Without --n it takes the first 60 problems.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from pydantic import Field, PositiveInt

from stepwise import routing
from stepwise.config import Config, Roles, RoutingConfig, ScorerConfig, is_lab, model_name
from stepwise.data.problems import SOURCES, named_problems
from stepwise.data.streamed import streamed
from stepwise.errors import BudgetExceededError, ConfigError, DataError, reason_of
from stepwise.grading import GRADER_VERSION
from stepwise.io import read_json
from stepwise.lab.problems import is_lab_question
from stepwise.models.lab_judges import strange_to_the_lab
from stepwise.models.reservations import by_endpoint
from stepwise.models.sizes import settled
from stepwise.models.store import CallCache
from stepwise.report import Report, summary_table, write_report
from stepwise.report.first_try import COLUMNS, in_words, table_rows
from stepwise.report.terminal import StepStream, show_trace
from stepwise.routing.against import against, against_in_words, traces_of
from stepwise.routing.chunked import Routed, routed_chunks, shown
from stepwise.routing.compare import PolicyRow, has_answers, json_row, judge
from stepwise.routing.deciding import needs_scorer
from stepwise.routing.first_try import first_try, free_signal, parts
from stepwise.routing.learned import Learned
from stepwise.routing.metrics import savings
from stepwise.routing.names import ModelNames
from stepwise.routing.planning import check_routing, plan_routing
from stepwise.routing.policies import Never
from stepwise.routing.policy import Policy
from stepwise.routing.route import RoutingInterrupted
from stepwise.routing.saved import SavedPolicy, load_policy, policy_from_config, policy_to_dict, save_policy
from stepwise.routing.signal_policies import Signalled
from stepwise.runs.chunks import Members
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.progress import announce
from stepwise.runs.shell import PIPE, ColumnNames, Options, Run, one_of, program
from stepwise.types import Problem, Trace

_WHERE = one_of("Problems")
_FIRST = 60
_NO_ANSWERS = "no solution has an answer; ask for \\boxed{} in [prompt]"
_MODELS = Group("Models")


class _Options(Options):
    neutral = ("stream", "as_json", "show", "against")

    weak: Annotated[str | None, Parameter(group=_MODELS)] = None
    """the weak model: the path of a GGUF, or provider/name"""
    strong: Annotated[str | None, Parameter(group=_MODELS)] = None
    """the strong model"""

    problems: Annotated[str | None, _WHERE, PIPE] = Field(None, description=f"{SOURCES}; - is standard input")
    columns: ColumnNames = None
    lab: Annotated[PositiveInt | None, _WHERE] = None
    """N problems of the lab"""
    split: str = "test"
    """split of the lab's problems"""
    n: PositiveInt | None = None
    """the first N problems"""
    policy: Path | None = None
    """saved policy, or the fit.json of fit_router (its exact plan)"""
    allow_import: tuple[str, ...] = ()
    """modules that --policy may import its class from"""
    at: float | None = None
    """operating point: threshold, rate, price per token, ..."""
    force: bool = False
    """take a --policy that was set for other models"""
    chunk: PositiveInt | None = None
    """problems that are done together from empty caches, and sealed; a task where workers.backend is "ray\""""
    stream: bool = False
    """one problem at a time, each step printed as it is made"""
    as_json: Annotated[bool, Parameter("--json")] = False
    """print a JSON object per problem, and one of the totals"""
    against: Path | None = None
    """directory of another run, to be shown beside this one"""
    show: int = 0
    """solutions to print at the end"""

    def overrides(self) -> list[str]:
        """The models."""
        if (self.weak is None) != (self.strong is None):
            raise ConfigError("--weak and --strong go together; give both, or a --config with the models")
        given = {"weak": self.weak, "strong": self.strong}
        return [f"models.{role}.model={model_name(model)}" for role, model in given.items() if model is not None]


def _policy_of(config: Config, args: _Options) -> SavedPolicy:
    """The policy of --policy or else of the configuration, at the operating point of --at."""
    if args.policy:
        saved = load_policy(args.policy, allow_import=args.allow_import)
        if saved.card is None and needs_scorer(saved.policy):
            announce(
                f"{args.policy} does not say which scorer its policy was set for; this run takes {config.scorer.title} "
                "(save it with sw.save_policy(path, policy, router.card) to have that checked)"
            )
    else:
        saved = SavedPolicy(policy_from_config(config.routing), None)
    if args.force and isinstance(saved.policy, Learned):  # it looks at the models itself
        saved = saved._replace(policy=dataclasses.replace(saved.policy, force=True))
    if args.at is None:
        return saved
    if saved.policy.point is None:
        raise DataError(f"--at is {args.at}, but policy {saved.policy.name!r} has no operating point; leave it out")
    try:
        return saved._replace(policy=saved.policy.at(args.at))
    except ValueError as error:
        raise DataError(f"--at is {args.at}: {reason_of(error)} (policy {saved.policy.name!r})") from None


def _problems_of(args: _Options) -> list[Problem]:
    return named_problems(args.problems, args.split, args.n, args.lab, columns=args.columns)


def _is_first_try(config: Config, args: _Options) -> bool:
    """Whether models of the user's come without a scorer and a policy."""
    return (
        not is_lab(config.models.weak.model)
        and config.scorer == ScorerConfig()
        and config.routing.policy == RoutingConfig().policy
        and args.policy is None
        and not args.stream
    )


def _first_problems_of(args: _Options) -> list[Problem]:
    return _problems_of(args if args.n or args.lab else args.model_copy(update={"n": _FIRST}))


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    if _is_first_try(config, args):
        aside, problems = parts(_first_problems_of(args))
        arms = plan_routing(config, [Never(), Signalled(free_signal(config.models.weak.local), 0.0)], problems)
        return [*arms, *plan_routing(config, [Never()], aside)]
    saved, names = _policy_of(config, args), config.models
    if not args.force:
        card = ModelNames(names.weak.model, names.strong.model, config.scorer.title, prompt=config.prompt.hash)
        saved.check(config, card)
    return plan_routing(config, [saved.policy], _problems_of(args))


@program(_Options, doc=__doc__, plan=_plan, on_workers=True)
def main(run: Run[_Options]) -> int:
    args, first = run.args, _is_first_try(run.config, run.args)
    set_too = [s for s in run.shared.set if s.startswith("routing.") and not s.startswith("routing.max_steps")]
    if args.against is not None:
        traces_of(args.against)
    if args.chunk is None:
        run.config.workers.refuse("stepwise route without --chunk")
    elif first or args.stream:
        what = "--stream" if args.stream else "a first try of two models (set a scorer or a policy)"
        raise ConfigError(f"--chunk {args.chunk} does not go with {what}; leave it out")
    if args.policy and set_too:
        raise ConfigError(
            f"--policy {args.policy} has its own settings, so that --set {set_too[0]} would do nothing; leave one out "
            "(--at moves a saved policy's operating point)"
        )
    saved = SavedPolicy(Never(), None) if first else _policy_of(run.config, args)
    problems = [] if args.chunk else _first_problems_of(args) if first else _problems_of(args)
    if not first and not args.force:
        check_routing(run.config, [saved.policy])
    roles: list[Roles] = ["weak", "strong", *(["scorer"] if needs_scorer(saved.policy) else [])]  # type: ignore[list-item]
    for warning in strange_to_the_lab({r: run.config.role(r) for r in roles[:2]}, [p.question for p in problems]):
        announce(warning)
    run.config = settled(run.config, roles, most=args.chunk or len(problems))
    if first:
        return _try_first(run, problems)
    if args.chunk:
        members = streamed(args.problems, args.n, args.columns) or _problems_of(args)
        return run.empty(has_answers(_route_chunks(run, saved, members, args.chunk)), _NO_ANSWERS)
    with routing.StepRouter.from_config(run.config, policy=saved.policy, window=1 if args.stream else None) as loaded:
        if not args.force:
            saved.check(run.config, loaded.card)
            if saved.promise and args.at is None:
                run.say(f"Promise of {args.policy}: {saved.promise}.")
        _remember(run, saved.policy, loaded.card)
        with CallCache(run.path("answers.jsonl"), replays_are_free=True) as cache:
            code = run.empty(has_answers(_route(run, loaded.with_cache(cache), problems)), _NO_ANSWERS)
            if cache.hit_rate:
                run.say(cache.summary())
    return code


def _route_chunks(run: Run[_Options], saved: SavedPolicy, problems: Members, size: int) -> list[Trace]:
    """Route chunk after chunk, or many at a time; what is sealed is shown, also where the run was stopped."""
    with routed_chunks(run.config, run.directory, saved, checked=not run.args.force) as (routed, route_all):
        _remember(run, saved.policy, routed.card)

        began = time.monotonic()
        try:
            route_all(problems, size, (lambda trace: run.say_json(json_row(trace))) if run.args.as_json else None)
        except (BudgetExceededError, KeyboardInterrupt):
            traces, row = shown(run.out / "traces.jsonl", routed)
            _finish(run, routed, traces, None, row)
            raise
        traces, row = shown(run.out / "traces.jsonl", routed)
        _finish(run, routed, traces, None if run.resumed else time.monotonic() - began, row)
        return traces


def _try_first(run: Run[_Options], problems: list[Problem]) -> int:
    """Set a policy, measure it beside the weak model alone, and write down all of it."""
    with (
        CallCache(run.path("answers.jsonl")) as cache,
        routing.StepRouter.from_config(run.config, policy=Never(), cache=cache) as router,
    ):
        first = first_try(router, problems)
        save_policy(run.path("policy.json"), first.policy, router.card)
        arms = [*first.measured, *([first.strong] if first.strong else [])]
        run.directory.claim("traces.jsonl").unlink(missing_ok=True)
        run.write("traces.jsonl", *(view for m in arms for view in m.views))
        words = in_words(first, router.prices)
        for m in arms:
            run.metrics(**vars(m.row), grader=GRADER_VERSION)
        report = Report(
            title="A first try of two models",
            rows=tuple(m.row for m in first.measured),
            traces=tuple(view for m in reversed(arms) for view in m.views),
            meta={"weak model": run.config.models.weak.model, "strong model": run.config.models.strong.model},
            notes=tuple(words),
        )
    for view in first.measured[1].views[: run.args.show]:
        show_trace(view.trace, run.console)
    run.table(f"{len(problems)} problems, {first.aside} of them to set the threshold", COLUMNS, table_rows(first))
    for line in words:
        run.say(line)
    run.say(f"The policy: --policy {run.path('policy.json')}. A configuration to go on with: stepwise init.")
    run.page("report.html", lambda path: write_report(path, report), "the solutions step by step")
    failed = [view.trace.note for view in first.measured[1].views if view.trace.finish == "error"]
    run.refuse_failure(failed, len(first.measured[1].views))
    return run.empty(has_answers([view.trace for arm in arms for view in arm.views]), _NO_ANSWERS)


def _remember(run: Run[_Options], policy: Policy, card: ModelNames) -> None:
    """Write the policy down; raises `DataError` where the run began with another one, as when its file was changed."""
    path = run.path("policy.json")
    code = type(policy)._source  # of a class of the user's
    now = json.loads(json.dumps({"policy": policy_to_dict(policy), "card": dataclasses.asdict(card), "code": code}))
    before = read_json(path, "give another --out, or --overwrite to begin anew") if path.exists() else {}
    if other := [key for key, name in now.items() if before.get(key, name) != name]:
        what = {"policy": "policy", "card": "models", "code": "code of the policy"}[other[0]]
        raise DataError(
            f"{path}: the run began with another {what} ({before[other[0]]}, now {now[other[0]]}); give another --out, "
            "or --overwrite to begin anew"
        )
    save_policy(path, policy, card, code=code)


def _route(run: Run[_Options], router: routing.StepRouter, problems: list[Problem]) -> list[Trace]:
    """Route what is not routed yet; caps are for the whole run, so what it spent before it was stopped counts."""
    router.count_stored()
    # What ended in an error is tried again; its first row stays in the file, and the last row of a problem counts.
    asked = set(problems)
    kept = [trace for trace in run.rows("traces.jsonl", Trace) if trace.finish != "error" and trace.problem in asked]
    for trace in kept if run.args.as_json else ():
        run.say_json(json_row(trace))

    def told(trace: Trace) -> None:
        run.write("traces.jsonl", trace)
        if run.args.as_json:
            run.say_json(json_row(trace))

    stream: Callable[[Trace], None] | None = StepStream(run.console) if run.args.stream else None
    began = time.monotonic()
    try:
        traces = router.solve_all(problems, on_trace=told, on_step=stream, resume=kept, progress=stream is None)
    except RoutingInterrupted as stop:
        _finish(run, router, [trace for trace in stop.traces if trace.steps])
        raise
    _finish(run, router, traces, None if kept else time.monotonic() - began)
    return traces


def _finish(
    run: Run[_Options],
    router: routing.StepRouter | Routed,
    traces: list[Trace],
    seconds: float | None = None,
    row: PolicyRow | None = None,
) -> None:
    """Print and write what the traces amount to; those that were interrupted are shown, but not counted. `seconds` is
    what all took, where they were routed in one go; `row` is that of all where `traces` are the first of them.
    """
    if not traces:
        return
    done = [trace for trace in traces if trace.finish != "interrupted"]
    rows = (row or judge(router, done, seconds).row,) if done else ()
    views, notes = judge(router, traces).views, []
    if done and run.args.against is not None:
        both = against(router, done, run.args.against)
        views, notes = (*views, *both[1].views), [against_in_words(both)]
    report = Report(
        title="Routed problems",
        rows=(*rows, both[1].row) if notes else rows,
        traces=views,
        notes=(*notes, *by_endpoint(router.ledger)),
        meta={
            "weak model": run.config.models.weak.model,
            "its adapter": run.config.models.weak.adapter or "",
            "strong model": run.config.models.strong.model,
            "scorer": run.config.scorer.title,
            "configuration": run.config.hash,
        },
        lab=all(is_lab_question(view.trace.problem.question) for view in views),
    )
    for view in views[: run.args.show]:
        show_trace(view.trace, run.console)
    if rows:
        run.console.print(summary_table(report, run.console.width))
    saved = savings(done, router.prices) if done else None
    for line in (*notes, router.ledger.summary(), *(saved.in_words() if saved else ())):
        run.say(line)
    ended = {kind: sum(t.finish == kind for t in traces) for kind in dict.fromkeys(t.finish for t in traces)}
    run.say("Solutions ended: " + ", ".join(f"{kind} {count}" for kind, count in ended.items()))
    for row in rows:
        run.metrics(**vars(row), finish=ended, grader=GRADER_VERSION)
        if run.args.as_json and saved is not None:
            totals = {**vars(row), "finish": ended, "estimated_savings": dataclasses.asdict(saved)}
            run.say_json({"totals": totals})
    run.page("report.html", lambda path: write_report(path, report), "the solutions step by step")
    run.refuse_failure([trace.note for trace in traces if trace.finish == "error"], len(traces))


if __name__ == "__main__":
    sys.exit(main())
