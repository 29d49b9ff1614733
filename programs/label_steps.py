"""Label the steps of models.weak's own solutions, for a scorer of one's own (stepwise train scorer).

Of each problem some solutions are written; those that ended wrong are gone on from behind their steps until it is clear
where the rate of right ends breaks (--by rollouts; --label soft, hard or progress asks at every step), or the critic,
shown the reference, names the first error (--by critic, also with critic.method = "reference"), or both, and those are
kept on which they agree. --people FILE has solutions with labels of people (the columns of ProcessBench, MR-GSM8K,
PRM800K): how often rollouts name the same first error is measured on these first. Writes labels.jsonl, cost.json and
what was found out about every attempt (chunks/). Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, PositiveInt

from stepwise.config import Config
from stepwise.data.problems import SOURCES, CheckedProblems, check_problems, load_problems
from stepwise.data.step_labels import LabelledSolution, load_step_labels
from stepwise.errors import DataError
from stepwise.interventions.settings import Writers
from stepwise.interventions.step_labels import COST, label_steps
from stepwise.interventions.step_search import LabelSettings
from stepwise.io import read_json
from stepwise.lab.problems import generate
from stepwise.models.caps import Caps, uncapped
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.shell import ColumnNames, Options, Run, one_of, program
from stepwise.types import Problem

_WHERE = one_of("Problems")


class _Options(Options, LabelSettings):
    model_config = ConfigDict(strict=False)

    problems: Annotated[str | None, _WHERE] = Field(None, description=SOURCES)
    columns: ColumnNames = None
    lab: Annotated[PositiveInt | None, _WHERE] = None
    """N problems of the lab"""
    split: str = "train"
    """of the lab's problems"""
    n: PositiveInt | None = None
    """the first N problems"""
    people: Path | None = None
    """solutions with labels of people, to check the rollouts on first"""
    people_problems: str | None = None
    """the problems of these, with answers; unset: --problems"""


def _problems_of(args: _Options) -> CheckedProblems:
    if args.problems is None:
        return check_problems(lab.problem for lab in generate(args.split, args.lab or args.n or 50)[: args.n])
    return check_problems(load_problems(args.problems, split="train", n=args.n, columns=args.columns))


def _check_of(args: _Options) -> list[tuple[Problem, LabelledSolution]]:
    """Solutions with labels of people, each with its problem and its answer."""
    if args.people is None:
        return []
    source = args.people_problems or args.problems
    known = {} if source is None else {p.question.strip(): p for p in load_problems(source, columns=args.columns)}
    pairs = [(known[s.question.strip()], s) for s in load_step_labels(args.people) if s.question.strip() in known]
    if not pairs:
        raise DataError(
            f"--people {args.people}: none of its questions is among the problems, whose answers are needed; "
            "give them, --people-problems FILE"
        )
    return pairs


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    """At most every solution ends wrong, and every boundary on the way needs all its rollouts."""
    checked, check = _problems_of(args).problems, _check_of(args)[: args.check]
    steps = config.routing.max_steps
    asked = (steps.bit_length() + 2) * args.most if args.label == "bisect" else (steps - 1) * args.rollouts
    attempts = len(checked) * args.labelled * (1 if args.label == "bisect" else 2) + len(check)
    rollouts = (len(checked) + len(check)) * args.attempts + (attempts * asked if args.by != "critic" else 0)
    read = max((len(p.question.encode()) for p in checked), default=0) + args.max_tokens
    return [PlannedCalls("weak", rollouts, rollouts * read, rollouts * args.max_tokens)]


@program(_Options, doc=__doc__, plan=_plan, same_run=uncapped, on_workers=True)
def main(run: Run[_Options], writers: Writers | None = None) -> int:
    args = run.args
    checked, settings = _problems_of(args), LabelSettings(**{k: getattr(args, k) for k in LabelSettings.model_fields})
    run.say(checked.summary())
    path = label_steps(checked, run.config, run.directory, settings=settings, writers=writers, check=_check_of(args))
    counts = read_json(path.parent / COST, "remove it, and run again")
    for name, value in counts.items():
        run.say(f"{name}: {value}")
    run.say(Caps(run.config, run.directory).ledger.summary())
    labelled = len(load_step_labels(path))
    run.say(f"{labelled} labelled solutions: {path}")
    if labelled:
        run.say(f"train on them: stepwise train scorer --labels {path.parent}")
    return run.empty(labelled, "no solution was labelled; take easier problems or more --attempts, or another --by")


if __name__ == "__main__":
    sys.exit(main())
