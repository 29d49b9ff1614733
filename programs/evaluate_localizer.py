"""How often localizers name the first error, on files with ProcessBench's columns, with the guess by position beside.

--data takes files of `problem`, `steps`, `label` (-1: no wrong step), each a subset of its own. --localizer takes

    module        ErrorLocalizer as [critic] and [models.critic] describe it
    scorer        the first step under a threshold, of the scores of the scorer in the configuration ([scorer])
    scores:NAME   the same with the scores that the file's column `scores` has under NAME

A threshold is chosen on the rows of --tune FILE, which are never those it is measured on. References are taken from the
column `reference`. Writes localization.json; what a scorer or a module said is kept row by row, and is not asked for
again when the same command is run again.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import PositiveInt
from rich import box
from rich.table import Table

from stepwise import critics
from stepwise.config import Config
from stepwise.critics.asked import Ask, AskedRow, attempt_key, localizing, remembered
from stepwise.data import localization as loc
from stepwise.data.localization import Outcome
from stepwise.data.processbench import ProcessBenchRow, read_rows
from stepwise.errors import DataError
from stepwise.io import write_text
from stepwise.models.lab_judges import critics_of, refuse_lab_judge_of
from stepwise.models.scorers import load_scorer, score_items
from stepwise.runs.plan import PlannedCalls, plan_localizing
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program

BATCH = 16  # attempts that are scored together
SHOWN = 160  # characters of an error
Rows = Sequence[ProcessBenchRow]


class _Options(Options):
    data: tuple[Path, ...]
    """rows to be measured on"""
    localizer: tuple[str, ...] = ("module",)
    """see above"""
    tune: Path | None = None
    """rows to choose on; none of them may be in --data"""
    limit: PositiveInt | None = None
    """the first N rows of each file"""
    seed: int = 0
    """of intervals"""
    threads: PositiveInt = 8
    """attempts at a time"""


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    parts = []
    for name in dict.fromkeys(args.localizer):
        test, tuning = _sets(args, name)
        rows = [row for subset in test.values() for row in subset]
        judges = {"scorer": config.scorer, "module": critics_of(config)["localizer"]}
        _refuse_lab(name, judges.get(name), config, [*tuning, *rows])
        if name == "scorer":
            critic = config.critic.model_copy(update={"method": "scorer"})
            parts += plan_localizing(config.model_copy(update={"critic": critic}), _sizes([*tuning, *rows]))
        elif name == "module":
            parts += plan_localizing(config, _sizes(rows))
    return parts


def _refuse_lab(name: str, judge: Any, config: Config, rows: Rows) -> None:
    """Raise `ConfigError` where the lab's scorer or critic would be asked about other problems."""
    refuse_lab_judge_of((row.problem.question for row in rows), judge, name, config.allow_lab)


def _sizes(rows: Rows) -> list[tuple[int, int]]:
    """Bytes of all texts and number of steps of each attempt."""
    texts = [(row.problem.question, row.problem.reference or "", *(s.text for s in row.trace.steps)) for row in rows]
    return [(len("".join(parts).encode("utf-8", "replace")), len(parts) - 2) for parts in texts]


@program(_Options, doc=__doc__, plan=_plan)
def main(
    run: Run[_Options],
    scorer: Callable[..., Any] = load_scorer,
    module: Callable[[Config], Any] | None = None,
) -> None:
    """Measure every localizer on every file; `scorer` and `module` load what the configuration names."""
    args = run.args
    if args.seed < 0:
        raise DataError(f"--seed is {args.seed}; give a whole number of at least 0")
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(args.localizer):
        test, tuning = _sets(args, name)
        rows_of_all = [row for part in test.values() for row in part]
        if name == "module":
            judge = (module or critics.ErrorLocalizer.from_config)(run.config)
            _refuse_lab(name, judge, run.config, rows_of_all)
            said = _remembered(run, "outcomes.jsonl", rows_of_all, localizing(judge, args.threads))
            rows += _measure(name, None, {key: row.outcome for key, row in said.items()}, test, args.seed)
            continue
        if name == "scorer":
            probe = run.config.scorer.kind == "probe"  # which alone needs the weak model
            given = {"prompt": run.config.prompt, "weak": run.config.models.weak} if probe else {}
            judge, asked = scorer(run.config.scorer, **given), [*tuning, *rows_of_all]
            _refuse_lab(name, judge, run.config, asked)
            said = _remembered(run, "scores.jsonl", asked, _scoring(judge))
        else:
            said = {row.key: row for row in map(_published, [*tuning, *rows_of_all])}
        chosen_on = [said[attempt_key(row)] for row in tuning]
        threshold = loc.best_threshold([None if row.outcome.error else row.scores for row in chosen_on], tuning)
        outcomes = {key: _below(row, threshold) for key, row in said.items()}
        rows += _measure(name, threshold, outcomes, test, args.seed)
    result = {
        "data": [str(path) for path in args.data],
        "seed": args.seed,
        "tune": str(args.tune) if args.tune else None,
        "prior": {subset: _prior(part) for subset, part in test.items()},
        "rows": rows,
    }
    write_text(run.path("localization.json"), json.dumps(result, indent=2) + "\n")
    _show(run, result)
    for name in dict.fromkeys(args.localizer):
        own = [row for row in rows if row["localizer"] == name]
        faults = [next(iter(row["errors"])) for row in own for _ in range(row["failed"])]
        run.refuse_failure(faults, sum(row["wrong"] + row["right"] for row in own), f"attempts of {name}")


def _sets(args: _Options, name: str) -> tuple[dict[str, list[ProcessBenchRow]], list[ProcessBenchRow]]:
    """The subsets to measure on, and the rows of --tune; raises `DataError` for what localizer `name` cannot do."""
    scores = name.removeprefix("scores:") if name.startswith("scores:") else None
    if scores is None and name not in ("scorer", "module"):
        raise DataError(f"--localizer {name}: there is no such localizer; see --help for their names")
    if name != "module" and not args.tune:
        raise DataError(
            f"--localizer {name} has something to choose, and never on the rows it is measured on: "
            "give other rows with --tune FILE"
        )
    test: dict[str, list[ProcessBenchRow]] = {}
    for path in args.data:
        if path.stem in test:
            raise DataError(f"--data has two files named {path.stem}; rename one, or measure one after the other")
        test[path.stem] = _load(path, scores)[: args.limit]
    tuning = _load(args.tune, scores) if args.tune else []
    for subset, rows in test.items():
        loc.refuse_shared(tuning, rows, subset)
    return test, tuning


def _load(path: Path, scores: str | None) -> list[ProcessBenchRow]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a JSON or JSON Lines file with the columns problem, steps, label")
    rows = list(read_rows(path, scores=scores))
    if not rows:
        raise DataError(f"{path} holds no rows; there is nothing to measure")
    return rows


def _remembered(run: Run[_Options], file: str, rows: Rows, ask: Ask) -> dict[str, AskedRow]:
    return remembered(run.rows(file, AskedRow), rows, partial(run.write, file), ask)


def _scoring(scorer: Any) -> Ask:
    def ask(todo: dict[str, ProcessBenchRow], keep: Callable[[AskedRow], None]) -> None:
        keys = list(todo)
        with progress(f"scoring with {scorer.name}", len(keys)) as advance:
            for start in range(0, len(keys), BATCH):
                batch = keys[start : start + BATCH]
                items = [(todo[key].problem, [step.text for step in todo[key].trace.steps]) for key in batch]
                for key, scored in zip(batch, score_items(scorer, items), strict=True):
                    keep(AskedRow(key, Outcome(None, scored.error, usage=scored.usage), tuple(scored.scores)))
                advance(len(batch))

    return ask


def _published(row: ProcessBenchRow) -> AskedRow:
    """The scores that stand in the steps of a row."""
    scores = tuple(step.score for step in row.trace.steps if step.score is not None)
    return AskedRow(attempt_key(row), Outcome(None), scores)


def _below(row: AskedRow, threshold: float) -> Outcome:
    """The first step whose score is under `threshold`, where there are scores."""
    first = None if row.outcome.error else loc.first_below(row.scores, threshold)
    return dataclasses.replace(row.outcome, first_error=first)


def _measure(
    name: str, chosen: float | None, said: dict[str, Outcome], test: dict[str, list[ProcessBenchRow]], seed: int
) -> list[dict[str, Any]]:
    """A row per subset, and one for their mean where there are several; `said` has the outcomes by `attempt_key`."""
    outcomes = {subset: [said[attempt_key(row)] for row in rows] for subset, rows in test.items()}
    counts = {subset: loc.count(outcomes[subset], rows) for subset, rows in test.items()}
    parts = {subset: [subset] for subset in test}
    if len(test) > 1:
        parts["mean"] = list(test)
    rows = []
    for subset, names in parts.items():
        own = [counts[part] for part in names]
        f1 = loc.mean_f1(own, seed=seed)
        value, low, high = f1 or (None, None, None)
        rows.append({
            "localizer": name, "subset": subset, "chosen": chosen,
            "wrong": sum(c.wrong for c in own), "right": sum(c.right for c in own),
            "f1": value, "f1_low": low, "f1_high": high,
            "above_constant": str(loc.above_constant(
                [outcome for part in names for outcome in outcomes[part]],
                [row for part in names for row in test[part]], seed=seed,
            )),
            "acc_err": own[0].acc_err if len(own) == 1 else None, "acc_cor": own[0].acc_cor if len(own) == 1 else None,
            **_spent([outcome for part in names for outcome in outcomes[part]]),
        })  # fmt: skip
    return rows


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


def _prior(rows: Rows) -> dict[str, Any]:
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


def _show(run: Run[_Options], result: dict[str, Any]) -> None:
    """One table per localizer, in percent; then the guess by position, and what failed."""
    for name in dict.fromkeys(row["localizer"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["localizer"] == name]
        chosen = rows[0]["chosen"]
        setting = "" if chosen is None else f", threshold {chosen:.3f}"
        table = Table(title=name + setting, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("subset", "F1", "95 %", "acc_err", "acc_cor", "prior", "failed", "calls", "tokens"):
            table.add_column(column, justify="left" if column == "subset" else "right", overflow="fold")
        for row in rows:
            prior = result["prior"].get(row["subset"], {}).get("best")
            f1, low, high, *shares = (
                "" if value is None else f"{value:.1f}"
                for value in (row["f1"], row["f1_low"], row["f1_high"], row["acc_err"], row["acc_cor"], prior)
            )
            tokens = row["prompt_tokens"] + row["generated_tokens"]
            spent = (f"{count:,}" for count in (row["failed"], row["calls"], tokens))
            table.add_row(row["subset"], f1, f"{low}-{high}", *shares, *spent)
        run.console.print(table)
        for row in rows:
            run.say(f"{row['subset']}: {row['above_constant']}")
            if row["repairs"]:
                run.say(f"{row['subset']}: {row['repairs']} replies could not be read and were asked for again")
            if row["errors"]:
                run.say(f"{row['subset']}: {row['failed']} failed, for example: {next(iter(row['errors']))}")
    for subset, prior in result["prior"].items():
        if prior["best"] is not None:
            run.say(
                f"{subset}, {prior['wrong']} wrong and {prior['right']} right attempts: {prior['best']:.1f} % of the "
                f"first errors are at step {prior['index']} (prior); a guess by position alone has an F1 of at most "
                f"{prior['blind_f1']:.1f}"
            )


if __name__ == "__main__":
    raise SystemExit(main())
