"""Collect interventions from a model's failed attempts (InT, arXiv 2601.14209): problems in, a dataset to train on out.

Problems come from a JSON Lines file or from the lab. Columns: question (or problem), answer, solution (or reference)
where there is one, id; GSM8K's rows are taken as they are. Killed or stopped at any moment, the same command goes on:
problems are done in chunks, and a chunk that was done is not done again. Writes dataset.jsonl with its card dataset.md,
the rows of all stages (chunks/), and report.html.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any, get_args

from pydantic import ValidationError

from stepwise.config import Config
from stepwise.data.examples import AnswerColumn, QuestionColumn, read_examples
from stepwise.data.problems import SOURCES, Checked, check_problems, load_problems
from stepwise.errors import BudgetExceededError, DataError
from stepwise.interventions.chunks import Caps
from stepwise.interventions.collection import collect, funnel, read_stage, sealed_cost
from stepwise.interventions.rows import by_id
from stepwise.interventions.settings import CollectSettings, uncapped
from stepwise.interventions.writers import Writers
from stepwise.lab.problems import generate, is_lab_question
from stepwise.report.collection import write_collection_report
from stepwise.report.shell import first_of_each
from stepwise.report.terminal import funnel_table, side_by_side
from stepwise.runs.plan import PlannedCalls, plan_collecting
from stepwise.runs.shell import Run, positive, program

SHOWN = 3


def _arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--problems", metavar="FILE", help=SOURCES)
    where.add_argument("--lab", type=positive, metavar="N", help="N problems of the lab (default: 50)")
    parser.add_argument("--split", default="train", help="of the lab's problems (default: %(default)s)")
    parser.add_argument("--n", type=positive, metavar="N", help="the first N problems of FILE (default: all)")
    parser.add_argument("--licence", default="other", metavar="NAME", help="for the card (default: %(default)s)")
    parser.add_argument(
        "--column-names",
        nargs=2,
        default=["question", "answer"],
        metavar="NAME",
        help="of the dataset: question or problem, and answer or solution (default: question answer)",
    )
    parser.add_argument(
        "--candidates", dest="set", action="append", type="critic.candidates={}".format, default=argparse.SUPPRESS,
        metavar="N", help="interventions tried per error (critic.candidates)",
    )  # fmt: skip
    group = parser.add_argument_group("how many of what; none stands for no limit")
    for name, field in CollectSettings.model_fields.items():
        description = f"{field.description} (default: {str(field.default).lower()})".replace("%", "%%")
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, type=_setting(name), default=field.default, metavar="VALUE", help=description)


def _setting(name: str) -> Callable[[str], Any]:
    """Type of the option for one field of CollectSettings."""

    def read(text: str) -> Any:
        try:
            value = None if text.lower() == "none" else json.loads(text)
        except ValueError:
            value = text
        try:
            return getattr(CollectSettings.model_validate({name: value}), name)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error.errors()[0]['msg']}") from None

    return read


def _settings_of(args: argparse.Namespace) -> CollectSettings:
    return CollectSettings(**{name: getattr(args, name) for name in CollectSettings.model_fields})


def _problems_of(args: argparse.Namespace) -> Checked:
    """The problems that the arguments ask for, those that cannot be graded sorted out; raises DataError."""
    if args.problems is None:
        return check_problems(lab.problem for lab in generate(args.split, args.lab or 50))
    try:
        return check_problems(load_problems(args.problems, split="train", n=args.n))
    except DataError as error:
        if args.problems in str(error):
            raise
        raise DataError(f"--problems {args.problems}: {error}") from None


def _notes(config: Config, checked: Checked, settings: CollectSettings) -> list[str]:
    """What is to be known before anything is spent."""
    lines = [checked.summary()]
    strange = [p for p in checked.problems if not is_lab_question(p.question)]
    models = {"weak": config.models.weak.model, "critic": config.models.critic.model}
    for role, model in models.items():
        if model.startswith("llamacpp/lab-") and strange:
            lines.append(
                f"warning: {model} knows lab problems only, and {len(strange)} of {len(checked.problems)} are none: "
                f"set models.{role}.model"
            )
    if not config.models.critic.local and settings.concurrency == 1:
        lines.append("the critic is asked one call at a time; --concurrency 8 is faster behind an API")
    if any(cap is not None for cap in vars(config.budget.problem).values()):
        lines.append("the caps of [budget.problem] do not count here; those of [budget] do")
    return lines


def _columns_of(args: argparse.Namespace) -> tuple[QuestionColumn, AnswerColumn]:
    """The column names asked for; raises DataError for others than the common ones."""
    question, answer = args.column_names
    if question not in get_args(QuestionColumn) or answer not in get_args(AnswerColumn):
        raise DataError(f"--column-names is {question} {answer}; give question or problem, and then answer or solution")
    return question, answer


def _plan(config: Config, args: argparse.Namespace) -> list[PlannedCalls]:
    checked, settings = _problems_of(args), _settings_of(args)
    _columns_of(args)
    for line in _notes(config, checked, settings):
        print(line, file=sys.stderr)
    return plan_collecting(config, settings, checked.problems)


@program(doc=__doc__, arguments=_arguments, plan=_plan, same_run=uncapped)
def main(run: Run, writers: Writers | None = None) -> None:
    began, args = time.monotonic(), run.args
    checked, settings, columns = _problems_of(args), _settings_of(args), _columns_of(args)
    for line in _notes(run.config, checked, settings):
        run.say(line)
    try:
        collect(
            checked,
            run.config,
            run.directory,
            settings=settings,
            writers=writers,
            licence=args.licence,
            columns=columns,
        )
    except BudgetExceededError:  # what is sealed has become a dataset
        done = {rollout.problem for rollout in read_stage(run.out, "rollouts")}
        if done:
            _show(run)
        run.say(f"{len(done)} of {len(checked.problems)} problems are done.")
        raise
    _show(run)
    run.say(f"This start took {time.monotonic() - began:.0f} s.")


def _show(run: Run) -> None:
    """Print the funnel, what was spent, some examples, and where the files are."""
    path = run.out / "dataset.jsonl"
    counts, examples, caps = funnel(run.out), read_examples(path), Caps.of(run.config, run.directory)
    run.console.print(funnel_table(counts))
    run.say((caps.ledger if caps is not None else sealed_cost(run.out, run.config)).summary())
    if examples:
        failures = by_id(read_stage(run.out, "failures"))
        shown = first_of_each(examples, SHOWN, lambda row: row.parents.get("problem", row.question))
        run.console.print(side_by_side(shown, failures))
    elif not counts["failed attempts"]:
        run.say("No example came out, since no attempt ended wrong: take harder problems, or more --rollouts.")
    else:
        run.say("No example came out; the stages show where the attempts were lost, and chunks/ holds every text.")
    if 2 * counts["candidates with a false equation"] > counts["candidates"]:
        run.say("Most candidates state a false equation and were dropped; --check-sums false keeps them.")
    run.metrics(**counts)
    run.say(f"{len(examples)} examples: {path}, with the card {path.with_suffix('.md').name} beside it")
    page = write_collection_report(run.path("report.html"), run.out)
    run.say(f"Look at the collection: {page.resolve().as_uri()}")


if __name__ == "__main__":
    sys.exit(main())
