"""Every policy, scorer and trained weak model on the same problems, at equal cost, with paired intervals.

Entries are families of policies, each at several settings that are set on other problems; --entries names some of
them, or an import path: a Policy, or an Entry of stepwise.routing.entries (examples/own_entry.py). Entries that look at
scores are measured with the configured scorer and with each of --scorers; a weak model with one of --adapters, such as
those of credit schemes that are compared, under the reference. Costs are strong tokens, all generated tokens, money
where models have prices (cached prompt tokens at theirs), and seconds of local models at their measured speeds.

The figures are of settings mixed at random per problem, chosen on one half of the problems and measured on the other.
Answers and rows are kept in --out: a run that was killed, or gets more entries, goes on. board.json can be checked in;
--against FILE says of each entry whether it is better, worse or not told apart.

The problems are the lab's, or those of a file, of which a part is left out of the measurement to set points on
(--set-on: another file). Beliefs and plans need step labels, which the lab has, or --fit, the fit.json of fit_router.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from glob import glob
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter
from pydantic import Field, PositiveInt

from stepwise import __version__
from stepwise.config import Config, ScorerConfig, is_lab
from stepwise.data.problems import SOURCES, named_problems
from stepwise.errors import ConfigError, DataError
from stepwise.grading import GRADER_VERSION
from stepwise.io import read_json, write_text
from stepwise.lab.problems import make
from stepwise.models import load_backend
from stepwise.models.checkup import speeds_of
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.scorers import PerfectScorer, Scorer, load_scorer
from stepwise.models.store import CallCache
from stepwise.report.board import board_table, change_cells, write_board
from stepwise.routing.board import BOARD_COSTS, Board, BoardLine, BoardRow, Job, Speeds
from stepwise.routing.entries import ENTRIES, USUAL, Entry, FittingData, entries_of
from stepwise.routing.planning import plan_routing, refuse_lab_judges
from stepwise.routing.policies import Always, Never, Random, Threshold
from stepwise.routing.policy import Policy
from stepwise.routing.pomdp.fit import RouterFit
from stepwise.routing.router import StepRouter
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.progress import progress
from stepwise.runs.shell import ColumnNames, Options, Run, program
from stepwise.seeds import stable_hash
from stepwise.types import Problem


class _Options(Options):
    neutral = ("entries", "scorers", "adapters", "seeds", "resamples", "reference", "against", "as_json")

    entries: tuple[str, ...] = Field(USUAL, description=f"some of {', '.join(e.name for e in ENTRIES)}; import paths")
    scorers: tuple[str, ...] = ()
    """further ones: a model as in [scorer] model, probe/FOLDER, or the import path of a Scorer"""
    adapters: tuple[str, ...] = ()
    """NAME=PATH of an adapter.gguf of the weak model; a path with * is one for each seed"""
    problems: str | None = Field(None, description=SOURCES)
    columns: ColumnNames = None
    split: str = "test"
    """of the lab's problems"""
    n: PositiveInt = 100
    """problems measured, at most"""
    set_on: str | None = None
    """a file of problems that settings are set on; in the lab those of val"""
    set_n: PositiveInt = 100
    """of these, at most"""
    fit_on: str | None = None
    """a file of problems that classifiers are fitted on; in the lab those of train"""
    fit_n: PositiveInt = 200
    """of these, at most"""
    fit: Path | None = None
    """the fit.json of fit_router, for beliefs and plans"""
    points: PositiveInt = 6
    """settings of an entry, at most"""
    seeds: PositiveInt = 1
    """runs of every setting"""
    resamples: PositiveInt = 1000
    """of the bootstrap"""
    reference: str = "threshold"
    """the entry that the others are compared with"""
    against: Path | None = None
    """the board.json of an earlier run"""
    as_json: Annotated[bool, Parameter("--json")] = False
    """print a JSON object for each entry and cost"""


class _Problems(NamedTuple):
    measured: list[Problem]
    set_on: list[Problem]
    fit_on: list[Problem]


def _problems_of(args: _Options) -> _Problems:
    """Raises DataError for a problem without an answer, and for one that settings are set on and that is measured."""
    given = named_problems(args.problems, args.split, args.n if args.problems is None else None, columns=args.columns)
    if args.problems is None or args.set_on:
        set_on = named_problems(args.set_on, "val", args.set_n, columns=args.columns)
    else:
        count = min(args.set_n, len(given) // 4)
        set_on, given = given[:count], given[count:]
    fit_on = []
    if args.problems is None or args.fit_on:
        fit_on = named_problems(args.fit_on, "train", args.fit_n, columns=args.columns)
    measured = given[: args.n]
    for problem in (*measured, *fit_on):
        if problem.answer is None:
            raise DataError(f"problem {problem.id!r} has no answer to judge by; give problems with answers")
    if both := {p.question for p in measured} & {p.question for p in (*set_on, *fit_on)}:
        raise DataError(f"{len(both)} problems are measured and set or fitted on too; give other files")
    if len(measured) < 4 or not set_on:
        raise DataError(f"{len(measured)} problems to measure and {len(set_on)} to set on; give more (--n, --set-on)")
    return _Problems(measured, set_on, fit_on)


def _scores_known(config: Config) -> bool:
    return is_lab(config.models.weak.model) or config.scorer != ScorerConfig()


def _wanted(config: Config, args: _Options) -> tuple[list[Entry], list[str]]:
    """The entries that can be measured, and of the others why not."""
    entries, left_out, lab = list[Entry](), list[str](), args.problems is None
    for entry in entries_of(args.entries):
        missing = {
            "a scorer (--set scorer.model=)": entry.scorer == "each" and not (_scores_known(config) or args.scorers),
            "step labels: the lab's problems, or --fit": entry.needs == "labels" and not lab and args.fit is None,
            "problems to fit on (--fit-on)": entry.needs == "problems" and not lab and args.fit_on is None,
            "the lab's checker": entry.scorer == "truth" and not lab,
        }
        if needed := [what for what, is_missing in missing.items() if is_missing]:
            left_out.append(f"{entry.name} is left out: it needs {needed[0]}.")
        else:
            entries.append(entry)
    return entries, left_out


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    problems, (entries, _) = _problems_of(args), _wanted(config, args)
    kinds = [entry.scorer for entry in entries if entry.level != "alone"]
    arms: list[Policy] = [Never(), Always()]
    arms += [Threshold()] * (args.points * kinds.count("each") * (len(args.scorers) + _scores_known(config)))
    arms += [Random()] * (args.points * (kinds.count("none") + len(args.adapters)))
    return plan_routing(config, arms * args.seeds, [*problems.measured, *problems.set_on])


def _truth(problem: Problem, steps: Sequence[str]) -> list[bool]:
    """The lab's checker on a problem of the lab."""
    _, split, number = problem.id.split("/")
    return make(split, int(number)).check(steps)


@program(_Options, doc=__doc__, plan=_plan)
def main(run: Run[_Options], models: tuple[Any, Any, Any] | None = None) -> None:
    args, config = run.args, run.config
    before = None if args.against is None else Board.load(args.against)
    problems, (entries, left_out) = _problems_of(args), _wanted(config, args)
    adapters = _adapters(args.adapters)
    with ExitStack() as stack:
        weak, strong, scorers = _loaded(config, args, stack, models)
        cache = stack.enter_context(CallCache(run.path("answers.jsonl")))

        def data_of(scorer: Scorer | None, weak: Any) -> FittingData:
            if scorer is not None:
                refuse_lab_judges(Threshold(), scorer, weak, config.allow_lab)
            router = StepRouter(
                weak, strong, scorer, Never(), prompt=config.prompt, sampling=config.sampling, budget=config.budget,
                max_steps=config.routing.max_steps, seed=config.seed, cache=cache, allow_lab=config.allow_lab,
                window=max(config.models.weak.requests, config.models.strong.requests),
            )  # fmt: skip
            fit = None if args.fit is None else RouterFit.load(args.fit)
            return FittingData(router, problems.set_on, problems.fit_on, problems.measured, args.points, fit)

        speeds = _speeds(run, weak, strong, before)
        known = {name: data_of(scorer, weak) for name, scorer in scorers.items()}
        plain = known.get("") or data_of(None, weak)
        facts = _facts(run, plain.router, problems, speeds)
        if before is not None:
            Board(facts, ()).refuse_other(before)
        jobs = [*_jobs(entries, known, plain, data_of)]
        for name, seed, path in adapters:
            spec = config.models.weak.model_copy(update={"adapter": path})
            trained = stack.enter_context(closing(load_backend(spec, prompt=config.prompt)))
            jobs.append(
                Job(f"after {name}", _after(entries, args.reference), data_of(scorers.get(""), trained), path, seed)
            )
        rows = _measured(run, jobs, speeds, left_out)
        run.say(cache.summary())
    _show(run, Board.of(facts, rows), before, left_out)


def _adapters(given: Sequence[str]) -> list[tuple[str, int, str]]:
    """Name, number of the seed and path of each adapter. Raises ConfigError where there is none."""
    found = []
    for text in given:
        name, _, path = text.partition("=")
        paths = sorted(glob(path)) if "*" in path else [path]
        if not path or not paths or not all(Path(each).exists() for each in paths):
            raise ConfigError(f"--adapters {text}: there is no such file; give NAME=PATH of an adapter.gguf")
        found += [(name, seed, each) for seed, each in enumerate(paths)]
    return found


def _loaded(
    config: Config, args: _Options, stack: ExitStack, models: tuple[Any, Any, Any] | None
) -> tuple[Any, Any, dict[str, Scorer]]:
    """Both models, and the scorers by name: "" is the configured one, or else the first of --scorers."""
    specs = (config.models.weak, config.models.strong)
    weak, strong = models[:2] if models else (
        stack.enter_context(closing(load_backend(spec, prompt=config.prompt))) for spec in specs
    )  # fmt: skip
    scorers: dict[str, Scorer] = {}
    if models or _scores_known(config):
        scorers[""] = models[2] if models else load_scorer(config.scorer, prompt=config.prompt, weak=weak)
    for text in args.scorers:
        spec: Any = ScorerConfig(kind="probe", model=text) if text.startswith("probe/") else text
        name = (text.partition(":")[2] or text) if scorers else ""
        scorers[name] = load_scorer(spec, prompt=config.prompt, weak=weak)
    for scorer in scorers.values():
        stack.callback(getattr(scorer, "close", lambda: None))
    return weak, strong, scorers


def _jobs(
    entries: Sequence[Entry], known: Mapping[str, FittingData], plain: FittingData, data_of: Any
) -> Iterator[Job]:
    for entry in entries:
        if entry.scorer == "each":
            for name, data in known.items():
                yield Job(f"{entry.name}, {name}" if name else entry.name, entry, data)
        elif entry.scorer == "truth":
            yield Job(entry.name, entry, data_of(PerfectScorer(_truth), plain.router.models.weak))
        else:
            yield Job(entry.name, entry, plain)


def _after(entries: Sequence[Entry], name: str) -> Entry:
    """The weak model after training: alone, and under the reference, set anew on what it writes itself."""
    reference = next((entry for entry in entries if entry.name == name), None)
    if reference is None:
        raise ConfigError(f"--adapters are measured under --reference {name!r}, which is no entry here; name another")
    return dataclasses.replace(reference, level="trained", policies=lambda data: [Never(), *reference.policies(data)])


def _measured(run: Run[_Options], jobs: Sequence[Job], speeds: Speeds | None, left_out: list[str]) -> list[BoardRow]:
    """A row for every setting and seed; those that are in rows.jsonl are not measured again."""
    done = {(row.entry, row.key, row.seed): row for row in run.rows("rows.jsonl", BoardRow)}
    prices = {role: run.config.role(role).prices for role in ("weak", "strong", "scorer")}
    rows, lost = list[BoardRow](), 0
    with progress("entries", len(jobs)) as advance:
        for job in jobs:
            advance(0, job.name)
            policies: Sequence[Policy] = ()
            try:
                policies = job.entry.policies(job.data)
            except (ConfigError, DataError) as error:
                left_out.append(f"{job.name} is left out: {error}.")
            for found in job.measure(policies, range(run.args.seeds), done, prices, speeds):
                run.refuse_failure(found.lost, len(found.row.correct), f"solutions of {job.name}")
                if found.fresh and not found.lost:
                    run.write("rows.jsonl", found.row)
                lost += len(found.lost)
                rows.append(found.row)
            advance(1)
    if lost:
        left_out.append(
            f"{lost} solutions were lost to a failure, and count as wrong; the same command tries them again."
        )
    return rows


def _speeds(run: Run[_Options], weak: Any, strong: Any, before: Board | None) -> Speeds | None:
    """Tokens a second that each model reads and writes alone: of the earlier board, else measured once in a run."""
    path = run.path("speeds.json")
    if before is not None and before.facts.get("speeds") and not path.exists():
        write_text(path, json.dumps(before.facts["speeds"]) + "\n")
    if not path.exists():
        if not isinstance(weak, LlamaCppBackend) or not isinstance(strong, LlamaCppBackend):
            return None
        found = {"weak": speeds_of(weak.engine), "strong": speeds_of(strong.engine)}
        write_text(path, json.dumps({role: [round(x, 1) for x in pair] for role, pair in found.items()}) + "\n")
    return {role: (reads, writes) for role, (reads, writes) in read_json(path, "remove it").items()}


def _facts(run: Run[_Options], router: StepRouter, problems: _Problems, speeds: Any) -> dict[str, Any]:
    """What the figures hold for."""
    args, config = run.args, run.config
    asked = stable_hash(*((p.id, p.question, p.answer) for p in problems.measured))
    facts = {
        "problems": f"{len(problems.measured)} ({asked:016x})",
        "source": args.problems or f"the lab, {args.split}",
        "weak": router.card.weak,
        "strong": router.card.strong,
        "prompt": config.prompt.hash,
        "sampling": config.sampling.model_dump(mode="json"),
        "max_steps": config.routing.max_steps,
        "seeds": args.seeds,
        "grader": GRADER_VERSION,
        "stepwise": __version__,
        "prices": {role: config.role(role).prices for role in ("weak", "strong", "scorer")},
        "speeds": speeds and dict(speeds),
    }
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def _show(run: Run[_Options], board: Board, before: Board | None, left_out: Sequence[str]) -> None:
    """Print the tables; write board.json and the page."""
    args = run.args
    weak, strong = (sum(board.entries[name][0].correct) / len(board.rows[0].correct) for name in ("never", "always"))
    notes = [
        f"The weak model alone solves {weak:.1%}, the strong model alone {strong:.1%} of "
        f"{len(board.rows[0].correct)} problems ({board.facts['source']}).",
        *left_out,
    ]
    lines = {cost: board.lines(cost, args.reference, args.resamples) for cost in BOARD_COSTS}
    for cost in [cost for cost, own in lines.items() if all(line.area.value is None for line in own)]:
        known = lines.pop(cost)
        why = "the strong model alone costs no more than the weak one (0 without prices), or solves no more"
        notes.append(f"Nothing to gain in {BOARD_COSTS[cost]}: {why if known else 'that is not known'}.")
    changes = [] if before is None else [*board.against(before, args.resamples)]
    notes.append(
        f"{len(board.entries) - 2} entries; whichever comes first of several is flattered by having been picked."
    )
    for cost, own in lines.items():
        title = f"At equal {BOARD_COSTS[cost]}; 95 % intervals in brackets, shares in percent, gains in points"
        run.table(title, *board_table(own, args.reference))
        for line in own if args.as_json else ():
            run.say_json({"cost": cost, **_plain(line)})
    if changes:
        run.table(f"Against {args.against}", ("entry", "cost", "area less the earlier one", ""), change_cells(changes))
    for note in notes:
        run.say(note)
    board.save(run.path("board.json"), figures={cost: [*map(_plain, own)] for cost, own in lines.items()}, notes=notes)
    run.say(f"The board, to be checked in and compared with --against: {run.path('board.json')}")
    shown = (board, lines, notes, args.reference, changes, args.problems is None)
    run.page("board.html", lambda path: write_board(path, *shown), "the board")


def _plain(line: BoardLine) -> dict[str, Any]:
    return json.loads(json.dumps(line._asdict(), default=dataclasses.asdict))  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())
