"""Make a dataset to train on: interventions in another form, or what they are compared with.

Of a collection (--collection, the directory that intervene wrote) any kind can be made, of problems alone those that
need no collection. Kinds: the collection's interventions as they are, without the success filter (unfiltered), with
the continuation that ended right (suffix), in a random place (moved), proposed for another place (random, earlier);
the references; rewrites with the reference in view
(reflection); solutions by the strong model (strong); the weak model's own right solutions (rejection); the first tokens
of its solutions (first_tokens); more of what lab-weak was pretrained on (own_corpus); pairs of the intervention and the
wrong step (pairs, for DPO). Of routed traces (--traces, the directory that route wrote): the escalated steps whose
discarded draft was the problem (routing), or where the weak model is to ask for help by the marker that rl.marker
names, and where not (calls). A killed run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError

from stepwise.config import Config
from stepwise.data.calls import call_rows
from stepwise.data.examples import read_examples, write_examples
from stepwise.data.problems import SOURCES, load_problems
from stepwise.errors import ConfigError, DataError
from stepwise.interventions.collection import read_stage
from stepwise.interventions.datasets import NEED_COLLECTION, Recipe, lab_problem, pairs, problems_of
from stepwise.interventions.from_routing import from_routing, read_traces
from stepwise.interventions.settings import BuildSettings, CollectSettings
from stepwise.io import write_rows
from stepwise.lab.problems import generate
from stepwise.lab.references import Granularity, reference
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.shell import ColumnNames, Options, Run, one_of, program
from stepwise.types import Problem, Trace

_WHERE = one_of("Problems")


class _Options(Options):
    neutral = ("licence",)

    kind: str
    """what to make, see above"""
    collection: Path | None = None
    """directory of a collection"""
    traces: Path | None = None
    """directory, or traces.jsonl, that route wrote"""
    problems: Annotated[str | None, _WHERE] = Field(None, description=SOURCES)
    columns: ColumnNames = None
    lab: Annotated[PositiveInt | None, _WHERE] = None
    """N problems of the lab"""
    split: str = "train"
    """split of the lab's problems"""
    n: PositiveInt | None = None
    """the first N problems"""
    granularity: Literal["full", "compressed", "regrouped"] | None = None
    """of the lab's references, in place of theirs"""
    option: tuple[str, ...] = ()
    """a setting, such as per_problem=2 or rounds=5"""
    licence: str = "other"
    """licence's short name, for the card"""


def _settings_of(args: _Options) -> BuildSettings:
    """The settings of --option; raises ConfigError for one that does not exist or does not fit."""
    given: dict[str, Any] = {}
    for option in args.option:
        name, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(f"--option {option!r} has no value; write it as name=value")
        *above, name = name.split(".")
        place = given
        for part in above:
            place = place.setdefault(part, {})
        try:
            place[name] = json.loads(text)
        except json.JSONDecodeError:
            place[name] = text
    try:
        return BuildSettings.model_validate(given)
    except ValidationError as error:
        detail = error.errors()[0]
        name, known = ".".join(map(str, detail["loc"])), ", ".join(BuildSettings.model_fields)
        raise ConfigError(f"--option {name}: {detail['msg']}, not {detail['input']!r:.60}; there are {known}") from None


def _problems_of(args: _Options) -> list[Problem] | None:
    """The problems that the arguments name, with references as asked for; None: those that the collection knows."""
    if args.problems is not None:
        if args.granularity:
            raise DataError("--granularity is for the lab's problems; leave it out with --problems")
        return load_problems(args.problems, split="train", n=args.n, columns=args.columns)
    if args.collection is None:
        labs = generate(args.split, args.lab or args.n or 50)[: args.n]
    elif args.granularity:
        labs = [lab_problem(problem.id) for problem in problems_of(args.collection, None)]
    else:
        return None
    kind: Granularity = args.granularity or "full"
    return [dataclasses.replace(lab.problem, reference=reference(lab, kind)) for lab in labs]


def _recipe_of(config: Config, args: _Options) -> Recipe:
    if args.kind in (*NEED_COLLECTION, "pairs") and args.collection is None:
        raise DataError(f"--kind {args.kind} is made from a collection; give its directory with --collection")
    problems, kind = _problems_of(args), "intervention" if args.kind == "pairs" else args.kind
    source = args.collection if args.collection is not None else problems or ()
    return Recipe(kind, source, config, _settings_of(args), problems)


def _traces_of(args: _Options) -> list[Trace]:
    if args.traces is None:
        raise DataError(f"--kind {args.kind} is made from traces; give the directory that route wrote with --traces")
    return read_traces(args.traces)


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    if args.kind == "calls":
        return []
    if args.kind == "routing":
        return _plan_from_routing(_traces_of(args), _settings_of(args).collect)
    return _recipe_of(config, args).planned()


@program(_Options, doc=__doc__, plan=_plan, on_workers=True)
def main(run: Run[_Options]) -> int:
    args = run.args
    if args.kind == "calls":
        counts = Counter[str]()
        calls = call_rows(_traces_of(args), run.config, counts)
        card = {"what became of what": dict(counts), "marker": run.config.rl.marker}
        path = write_examples(run.path("dataset.jsonl"), calls, card=card, licence=args.licence)
    elif args.kind == "routing":
        settings = _settings_of(args).collect
        path = from_routing(_traces_of(args), run.config, run.directory, settings=settings, licence=args.licence)
    else:
        recipe = _recipe_of(run.config, args)
        if recipe.checked.excluded:
            run.say(recipe.checked.summary())
        if args.kind == "pairs" and args.collection is not None:
            found = pairs(read_stage(args.collection, "examples"), read_stage(args.collection, "failures"))
            write_rows(run.path("pairs.jsonl"), found)
            run.say(f"{len(found)} pairs in {run.out / 'pairs.jsonl'}")
            return run.empty(len(found), "no pair came out; the collection has no examples with a wrong step")
        path = recipe.write(run.directory, licence=args.licence)
    rows = len(read_examples(path))
    run.say(f"{rows} rows of the kind {args.kind} in {path}; the card beside it says what became of what")
    return run.empty(rows, f"no row came out; {path.with_suffix('.md').name} says why")


def _plan_from_routing(traces: Sequence[Trace], settings: CollectSettings) -> list[PlannedCalls]:
    """The most that `from_routing` asks for: all escalated steps of all traces, and their drafts."""
    texts = [
        2 * len((trace.problem.question + trace.text).encode())
        for trace in traces
        for step in trace.steps
        if step.author != "weak" and step.discarded
    ]
    n = 2 * len(texts) * settings.guided
    return [PlannedCalls("weak", n, sum(texts), n * settings.max_tokens)]


if __name__ == "__main__":
    sys.exit(main())
