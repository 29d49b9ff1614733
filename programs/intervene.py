"""Collect interventions from a model's failed attempts (InT, arXiv 2601.14209): problems in, a dataset to train on out.

Problems come from a JSON Lines file or from the lab. Columns: question (or problem), answer, solution (or reference)
where there is one, id; GSM8K's rows are taken as they are. Killed or stopped at any moment, the same command goes on:
problems are done in chunks, and a chunk that was done is not done again. Writes dataset.jsonl with its card dataset.md,
the rows of all stages (chunks/), and report.html.
"""

from __future__ import annotations

import sys
import time
from typing import Annotated

from pydantic import ConfigDict, Field, PositiveInt

from stepwise.config import Config
from stepwise.data.examples import read_examples
from stepwise.data.problems import SOURCES, CheckedProblems, check_problems, load_problems
from stepwise.errors import BudgetExceededError, DataError
from stepwise.interventions.collection import collect, funnel, read_stage
from stepwise.interventions.rows import by_id
from stepwise.interventions.settings import CollectSettings, Writers
from stepwise.lab.problems import generate
from stepwise.models.caps import Caps, uncapped
from stepwise.models.lab_judges import strange_to_the_lab
from stepwise.report.collection import write_collection_report
from stepwise.report.shell import first_of_each
from stepwise.report.terminal import funnel_table, side_by_side
from stepwise.runs.plan import PlannedCalls, plan_collecting
from stepwise.runs.shell import ColumnNames, Options, Run, one_of, program
from stepwise.stats import wilson

SHOWN = 3
_WHERE = one_of("Problems")


class _Options(Options, CollectSettings):
    model_config = ConfigDict(strict=False)
    neutral = ("licence", "candidates")

    problems: Annotated[str | None, _WHERE] = Field(None, description=SOURCES)
    columns: ColumnNames = None
    lab: Annotated[PositiveInt | None, _WHERE] = None
    """N problems of the lab"""
    split: str = "train"
    """of the lab's problems"""
    n: PositiveInt | None = None
    """the first N problems"""
    licence: str = "other"
    """for the card"""
    candidates: PositiveInt | None = None
    """interventions tried per error (critic.candidates); where critic.temperature is 0 the first is greedy, the others
    are drawn at 0.7"""

    def overrides(self) -> list[str]:
        return [] if self.candidates is None else [f"critic.candidates={self.candidates}"]


def _settings_of(args: _Options) -> CollectSettings:
    return CollectSettings(**{name: getattr(args, name) for name in CollectSettings.model_fields})


def _problems_of(args: _Options) -> CheckedProblems:
    """The problems that the arguments ask for, those that cannot be graded sorted out; raises DataError."""
    if args.problems is None:
        return check_problems(lab.problem for lab in generate(args.split, args.lab or args.n or 50)[: args.n])
    try:
        return check_problems(load_problems(args.problems, split="train", n=args.n, columns=args.columns))
    except DataError as error:
        if args.problems in str(error):
            raise
        raise DataError(f"--problems {args.problems}: {error}") from None


def _notes(config: Config, checked: CheckedProblems, settings: CollectSettings) -> list[str]:
    """What is to be known before anything is spent; raises DataError for a critic of references without any."""
    lines = [checked.summary()]
    by_reference = config.critic.method == "reference"
    models = {"weak": config.models.weak} | ({} if by_reference else {"critic": config.models.critic})
    lines += strange_to_the_lab(models, [problem.question for problem in checked.problems])
    if not by_reference and not config.models.critic.model.startswith("llamacpp/lab-"):
        lines.append("whether this critic is above a guess: stepwise localize --compare FILE, with labelled attempts")
    if by_reference and len(checked.without_reference) == len(checked.problems):
        raise DataError('critic.method is "reference", and no problem has a reference; add the column, or set another')
    if by_reference:
        lines.append("no model proposes: the steps are the references', so that training on them is distillation")
    elif not config.models.critic.local and settings.concurrency == 1:
        lines.append("the critic is asked one call at a time; --concurrency 8 is faster behind an API")
    if any(cap is not None for cap in vars(config.budget.problem).values()):
        lines.append("the caps of [budget.problem] do not count here; those of [budget] do")
    return lines


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    checked, settings = _problems_of(args), _settings_of(args)
    Writers(config).refuse_lab()
    for line in _notes(config, checked, settings):
        print(line, file=sys.stderr)
    return plan_collecting(config, settings, checked.problems)


@program(_Options, doc=__doc__, plan=_plan, same_run=uncapped, on_workers=True)
def main(run: Run[_Options], writers: Writers | None = None) -> int:
    began, args = time.monotonic(), run.args
    checked, settings = _problems_of(args), _settings_of(args)
    for line in _notes(run.config, checked, settings):
        run.say(line)
    try:
        collect(checked, run.config, run.directory, settings=settings, writers=writers, licence=args.licence)
    except (BudgetExceededError, KeyboardInterrupt):  # what is sealed has become a dataset
        done = {rollout.problem for rollout in read_stage(run.out, "rollouts")}
        if done and (run.out / "dataset.jsonl").exists():
            _show(run)
        run.say(f"{len(done)} of {len(checked.problems)} problems are done.")
        raise
    _show(run)
    run.say(f"Done in {time.monotonic() - began:.0f} s{', counted from this start on' if run.resumed else ''}.")
    rollouts = read_stage(run.out, "rollouts")
    run.refuse_failure([rollout.error for rollout in rollouts if rollout.error], len(rollouts), "attempts")
    counts = funnel(run.out)
    if not counts["failed attempts"] and counts["rollouts without a text"] < counts["rollouts"]:
        return 0
    return run.empty(len(read_examples(run.out / "dataset.jsonl")), "no example came out; the lines above say where")


def _show(run: Run[_Options]) -> None:
    """Print the funnel, what was spent, some examples, and where the files are."""
    path = run.out / "dataset.jsonl"
    counts, examples = funnel(run.out), read_examples(path)
    run.console.print(funnel_table(counts))
    run.say(Caps(run.config, run.directory).ledger.summary())
    if tried := counts["fresh rollouts"]:
        right = counts["fresh rollouts that end right"]
        share, low, high = wilson(right, tried)
        run.say(
            f"The steps that were accepted lead to a right end in {right} of {tried} fresh rollouts: {share:.0%} "
            f"({low:.0%} to {high:.0%}); those that chose them say more than is true."
        )
    if unlucky := counts["examples with no right fresh rollout"]:
        run.say(
            f"{unlucky} of the {len(examples)} examples have no right end among their fresh rollouts: the rollouts "
            "before these accepted them, and they stay in the dataset, with 0 successes (--fresh 16 tells more)."
        )
    if examples:
        failures = by_id(read_stage(run.out, "failures"))
        shown = first_of_each(examples, SHOWN, lambda row: row.parents.get("problem", row.question))
        run.console.print(side_by_side(shown, failures))
    elif counts["rollouts without a text"] == counts["rollouts"]:
        run.say("No example came out, since no attempt has a text: see what the weak model answers (stepwise doctor).")
    elif not counts["failed attempts"]:
        run.say("No example came out, since no attempt ended wrong: take harder problems, or more --rollouts.")
    else:
        run.say("No example came out; the stages show where the attempts were lost, and chunks/ holds every text.")
    if 2 * counts["candidates in no solver's form"] > counts["candidates"]:
        run.say("Most candidates are no step of a solution and were dropped: this model is no critic.")
    if 2 * counts["candidates with a false equation"] > counts["candidates"]:
        run.say(
            "Most candidates state a false equation and were dropped: give --candidates more, or take another critic."
        )
    run.metrics(**counts)
    run.say(f"{len(examples)} examples: {path}, with the card {path.with_suffix('.md').name} beside it")
    run.page("report.html", lambda path: write_collection_report(path, run.out), "the collection")


if __name__ == "__main__":
    sys.exit(main())
