"""How often localizers name the first error, on files with ProcessBench's columns, with the guess by position beside.

--data takes files of `problem`, `steps`, `label` (-1: no wrong step), each a subset of its own. --localizer takes

  scores:NAME    the first step under a threshold, of the scores that the file's column `scores` has under NAME
  scorer         the same with the scores of the scorer in the configuration ([scorer])
  module         ErrorLocalizer as [critic] and [models.critic] describe it
  absent-number  the first step with a number that is neither in the question nor in the reference
  constant       always the same step
  random         "no error" half of the time, else any step

What is chosen (threshold, constant) is chosen on other rows: those of --tune FILE; or --tune-rows N of each file drawn
at random, --splits times, each time measured on the others, with mean and standard deviation over the splits.
References are taken from the column `reference`, or by question from --references (columns `question` or `problem`,
`solution` or `answer`). Writes localization.json; what a scorer or a module said is kept row by row, and is not asked
for again when the same command is run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stepwise.config import Config
from stepwise.data import localization as loc
from stepwise.data.localization import Localizer, Outcome
from stepwise.data.processbench import ProcessBenchRow, read_rows
from stepwise.errors import DataError
from stepwise.io import read_rows as read_lines
from stepwise.runs.plan import Planned
from stepwise.runs.shell import Run, positive, program

from .localization_models import by_module, planned, with_scores

HEADS = ("acc_err", "acc_cor", "prior", "failed", "calls", "tokens")
TUNED = ("scorer", "constant")
FIXED = ("module", "absent-number", "random")
SHOWN = 160  # characters of an error
SPENT = ("failed", "repairs", "calls", "prompt_tokens", "generated_tokens")
# Published scores whose F1 is known: file, scorer, rows to choose on -> F1 and how far the mean over splits may be off.
KNOWN = {("mr_gsm8k_prm_scores", "scores:math-shepherd_mistral-7b", 200): (64.0, 4.0)}


class Arm(NamedTuple):
    """A localizer before anything is chosen: its name, the rows as it needs them, by subset, and for tuning."""

    name: str
    test: dict[str, list[ProcessBenchRow]]
    tuning: list[ProcessBenchRow]
    fixed: Localizer | None = None  # where nothing is to be chosen


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="FILE", help="rows to be measured on")
    parser.add_argument(
        "--localizer", nargs="+", default=["random"], metavar="NAME", help="see above (default: random)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--tune", type=Path, metavar="FILE", help="rows to choose on; none of them may be in --data")
    where.add_argument(
        "--tune-rows", type=positive, metavar="N", help="rows of each file to choose on, drawn at random"
    )
    parser.add_argument("--splits", type=positive, default=50, help="draws of --tune-rows (default: %(default)s)")
    parser.add_argument("--references", type=Path, nargs="+", default=[], metavar="FILE", help="reference solutions")
    parser.add_argument("--with-reference", action="store_true", help="leave out rows that have no reference")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N rows of each file")
    parser.add_argument("--seed", type=int, default=0, help="of splits, intervals and guesses (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=8, help="attempts at a time (default: %(default)s)")


def plan(config: Config, args: argparse.Namespace) -> list[Planned]:
    parts = []
    for name in dict.fromkeys(args.localizer):
        test, tuning = _sets(args, name)
        rows = [row for subset in test.values() for row in subset]
        parts += planned(config, name, [*tuning, *rows] if name == "scorer" else rows)
    return parts


@program(doc=__doc__, arguments=arguments, plan=plan)
def main(run: Run) -> None:
    args = run.args
    if args.seed < 0:
        raise DataError(f"--seed is {args.seed}; give a whole number of at least 0")
    result: dict[str, Any] = {"data": [str(path) for path in args.data], "seed": args.seed}
    arms = [_arm(run, name) for name in dict.fromkeys(args.localizer)]
    result["prior"] = {subset: _prior(rows) for subset, rows in arms[0].test.items()}
    if args.tune_rows is None:
        result["tune"] = str(args.tune) if args.tune else None
        result["rows"] = [row for arm in arms for row in _measure(arm, args)]
    else:
        result |= {"tune_rows": args.tune_rows, "splits": args.splits}
        result["rows"] = [_over_splits(arm, subset, args) for arm in arms for subset in arm.test]
    run.path("localization.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _print(run, result)


def _arm(run: Run, name: str) -> Arm:
    """The localizer and its rows; asks a model about them where it is one."""
    test, tuning = _sets(run.args, name)
    if name == "scorer":
        from stepwise import load_scorer

        scored = with_scores(run, load_scorer(run.config.scorer), {"": tuning, **test})
        tuning = scored.pop("")
        return Arm(name, scored, tuning)
    if name == "module":
        from stepwise import ErrorLocalizer

        return Arm(name, test, tuning, by_module(run, ErrorLocalizer.from_config(run.config), test, run.args.threads))
    if name == "random":
        return Arm(name, test, tuning, loc.random_guess(run.args.seed))
    return Arm(name, test, tuning, loc.absent_number if name == "absent-number" else None)


def _sets(args: argparse.Namespace, name: str) -> tuple[dict[str, list[ProcessBenchRow]], list[ProcessBenchRow]]:
    """The subsets to measure on, and the rows of --tune; raises `DataError` for what localizer `name` cannot do."""
    published = name.startswith("scores:")
    if not published and name not in (*TUNED, *FIXED):
        raise DataError(f"--localizer {name}: there is no such localizer; see --help for their names")
    if (published or name in TUNED) and not (args.tune or args.tune_rows):
        raise DataError(
            f"--localizer {name} has something to choose, and never on the rows it is measured on: "
            "give other rows with --tune FILE, or --tune-rows N to draw some of each file"
        )
    scores = name.removeprefix("scores:") if published else None
    references = _references(args.references)
    test: dict[str, list[ProcessBenchRow]] = {}
    for path in args.data:
        if path.stem in test:
            raise DataError(f"--data has two files named {path.stem}; rename one, or measure one after the other")
        test[path.stem] = _load(path, scores, references, args.with_reference)[: args.limit]
    tuning = _load(args.tune, scores, references, args.with_reference) if args.tune else []
    for subset, rows in test.items():
        loc.refuse_shared(tuning, rows, subset)
        if len(rows) <= (args.tune_rows or 0):
            raise DataError(f"--tune-rows {args.tune_rows} leaves none of the {len(rows)} rows of {subset}; give fewer")
    missing = sum(row.problem.reference is None for rows in test.values() for row in rows)
    if missing and name == "absent-number":
        raise DataError(
            f"--localizer {name} compares with reference solutions, and {missing} rows have none: add a column "
            "reference, name files with --references, or leave these rows out with --with-reference"
        )
    return test, tuning


def _load(path: Path, scores: str | None, references: dict[str, str], only: bool) -> list[ProcessBenchRow]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a JSON or JSON Lines file with the columns problem, steps, label")
    rows = []
    for row in read_rows(path, scores=scores):
        reference = row.problem.reference or references.get(" ".join(row.problem.question.split()))
        if reference is not None or not only:
            rows.append(row._replace(problem=dataclasses.replace(row.problem, reference=reference)))
    if not rows:
        raise DataError(f"{path} holds no rows{' that have a reference' if only else ''}; there is nothing to measure")
    return rows


def _references(paths: Sequence[Path]) -> dict[str, str]:
    """Question, blanks aside -> its solution; a `solution` goes before an `answer`, which may hold the answer alone."""
    found = {}
    for path in paths:
        if not path.is_file():
            raise DataError(f"--references {path}: no such file; give JSON Lines with questions and their solutions")
        for number, row in enumerate(read_lines(path, finished=True), 1):
            question, solution = row.get("question", row.get("problem")), row.get("solution", row.get("answer"))
            if not isinstance(question, str) or not isinstance(solution, str):
                raise DataError(
                    f"{path}, row {number}: fields question (or problem) and solution (or answer) must be texts"
                )
            found[" ".join(question.split())] = solution
    return found


def _chosen(arm: Arm, tuning: Sequence[ProcessBenchRow]) -> tuple[Localizer, float | None]:
    """The localizer with what was chosen on `tuning`, None where there was nothing to choose."""
    if arm.fixed is not None:
        return arm.fixed, None
    if arm.name == "constant":
        index = loc.best_constant(tuning)
        return loc.constant_guess(index), index
    threshold = loc.best_threshold([loc.scores_of(row) for row in tuning], tuning)
    return loc.below(threshold), threshold


def _measure(arm: Arm, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per subset, and one for their mean where there are several."""
    localizer, chosen = _chosen(arm, arm.tuning)
    rows, counts = [], []
    for subset, examples in arm.test.items():
        outcomes = [localizer(example) for example in examples]
        counts.append(loc.count(outcomes, examples))
        rows.append(_row(arm.name, subset, counts[-1:], args.seed) | {"chosen": chosen} | _spent(outcomes))
    if len(rows) > 1:
        sums = {key: sum(row[key] for row in rows) for key in SPENT}
        rows.append(_row(arm.name, "mean", counts, args.seed) | {"chosen": chosen} | sums)
    return rows


def _row(name: str, subset: str, counts: Sequence[loc.LocalizationCounts], seed: int) -> dict[str, Any]:
    interval = loc.mean_f1(counts, seed=seed)
    one = counts[0] if len(counts) == 1 else None
    return {
        "localizer": name,
        "subset": subset,
        "wrong": sum(c.wrong for c in counts),
        "right": sum(c.right for c in counts),
        "f1": interval.value if interval else None,
        "f1_low": interval.low if interval else None,
        "f1_high": interval.high if interval else None,
        "acc_err": one.acc_err if one else None,
        "acc_cor": one.acc_cor if one else None,
    }


def _spent(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    errors = Counter(outcome.error[:SHOWN] for outcome in outcomes if outcome.error)
    usages = [outcome.usage for outcome in outcomes]
    return {
        "failed": errors.total(),
        "errors": dict(errors.most_common(5)),
        "repairs": sum(outcome.repairs for outcome in outcomes),
        "calls": sum(usage.calls for usage in usages),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "generated_tokens": sum(usage.generated_tokens for usage in usages),
    }


def _over_splits(arm: Arm, subset: str, args: argparse.Namespace) -> dict[str, Any]:
    """Mean and standard deviation over draws of the rows to choose on, each measured on the rows not drawn."""
    rows = arm.test[subset]
    draws = []
    for split in range(args.splits):
        order = np.random.default_rng([args.seed, split]).permutation(len(rows))
        tuning, test = ([rows[i] for i in part] for part in (order[: args.tune_rows], order[args.tune_rows :]))
        loc.refuse_shared(tuning, test, f"{subset}, split {split}")
        localizer, chosen = _chosen(arm, tuning)
        counts = loc.count([localizer(row) for row in test], test)
        if counts.f1 is None:
            raise DataError(f"{subset}, split {split}: only wrong or only right rows to measure on; give more rows")
        draws.append((counts.f1, counts.acc_err, counts.acc_cor, np.nan if chosen is None else chosen))
    values = np.array(draws, dtype=np.float64)
    mean, sd = values.mean(axis=0), values.std(axis=0)
    result: dict[str, Any] = {"localizer": arm.name, "subset": subset, "measured_on": len(rows) - args.tune_rows}
    for i, key in enumerate(("f1", "acc_err", "acc_cor", "chosen")):
        result[key], result[f"{key}_sd"] = (None, None) if np.isnan(mean[i]) else (float(mean[i]), float(sd[i]))
    whole = not args.limit and not args.with_reference
    known = KNOWN.get((subset, arm.name, args.tune_rows)) if whole else None
    result |= {"known": known, "held": None if known is None else bool(abs(mean[0] - known[0]) <= known[1])}
    return result | _spent([localizer(row) for row in rows])


def _prior(rows: Sequence[ProcessBenchRow]) -> dict[str, Any]:
    shares = loc.position_prior(rows)
    best = max(shares, default=None)
    wrong = sum(row.localization.first_error is not None for row in rows)
    return {
        "wrong": wrong,
        "right": len(rows) - wrong,
        "shares": shares,
        "best": best,
        "index": None if best is None else shares.index(best),
        "blind_f1": loc.blind_f1(shares),
    }


def _print(run: Run, result: dict[str, Any]) -> None:
    """One table per localizer, in percent; then the guess by position, and what failed."""
    from rich import box
    from rich.table import Table

    splits = result.get("splits")
    for name in dict.fromkeys(row["localizer"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["localizer"] == name]
        style: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
        table = Table(title=name + _setting(rows, splits), **style)
        for column in ("subset", "F1", "sd" if splits else "95 %", *HEADS):
            table.add_column(column, justify="left" if column == "subset" else "right", overflow="fold")
        for row in rows:
            spread = _text(row["f1_sd"]) if splits else f"{_text(row['f1_low'])}-{_text(row['f1_high'])}"
            prior = result["prior"].get(row["subset"], {}).get("best")
            shares = [_text(value) for value in (row["acc_err"], row["acc_cor"], prior)]
            tokens = row["prompt_tokens"] + row["generated_tokens"]
            spent = [f"{count:,}" for count in (row["failed"], row["calls"], tokens)]
            table.add_row(row["subset"], _text(row["f1"]), spread, *shares, *spent)
        run.console.print(table)
        for row in rows:
            if row.get("known"):
                aim, around = row["known"]
                run.say(f"{row['subset']}: F1 {aim:g} +- {around:g} expected: {'ok' if row['held'] else 'MISSED'}")
            if row["repairs"]:
                run.say(f"{row['subset']}: {row['repairs']} replies could not be read and were asked for again")
            if row.get("errors"):
                run.say(f"{row['subset']}: {row['failed']} failed, for example: {next(iter(row['errors']))}")
    for subset, prior in result["prior"].items():
        if prior["best"] is not None:
            run.say(
                f"{subset}, {prior['wrong']} wrong and {prior['right']} right attempts: {prior['best']:.1f} % of the "
                f"first errors are at step {prior['index']} (prior); a guess by position alone has an F1 of at most "
                f"{prior['blind_f1']:.1f}"
            )


def _setting(rows: Sequence[dict[str, Any]], splits: int | None) -> str:
    """What was chosen on other rows, for the table's title."""
    chosen, name = rows[0]["chosen"], rows[0]["localizer"]
    if chosen is None:
        return ""
    if splits is None:
        return f", step {chosen}" if name == "constant" else f", threshold {chosen:.3f}"
    return f", chosen anew in each of {splits} splits"


def _text(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    raise SystemExit(main())
