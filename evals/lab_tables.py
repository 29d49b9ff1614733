"""The lab's figures against their ranges, and as tables; measured by `evals.lab`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepwise.lab.families import FAMILIES
from stepwise.runs.shell import Run


def gates(f: dict[str, Any]) -> list[dict[str, Any]]:
    """Each stated range with what was measured."""
    test, cover = f["solved"]["test"], f["coverage"]
    unlocked = cover["prefix and the true step"]
    rows: list[tuple[str, float, float, float]] = [
        ("lab-weak solves", test["lab-weak"]["solved"], 0.30, 0.55),
        ("lab-strong solves", test["lab-strong"]["solved"], 0.90, 1.0),
        ("ordinary steps of lab-weak right (T = 1)", f["right_rule"]["ordinary"]["solved"], 0.985, 1.0),
        ("problems failed in every sample", cover["failed_all"], 0.10, 1.0),
        ("of these, unlocked by the true step", unlocked["covered"] / max(1, unlocked["of"]), 0.50, 1.0),
        ("solutions with an error that end wrong", f["recovery"]["test"]["solved"], 0.90, 1.0),
        ("the same in the recovery split", f["recovery"]["test-recovery"]["solved"], 0.70, 0.85),
        ("scorer AUROC, right against first wrong step", f["scorer"]["auroc"], 0.85, 0.98),
    ]
    if "sham" in f:
        rows.append(("gain from the sham control", f["sham"]["gain"], -1.0, 0.02))
    return [{"what": w, "measured": m, "low": lo, "high": hi, "held": bool(lo <= m <= hi)} for w, m, lo, hi in rows]


def show(run: Run[Any], figures: dict[str, Any], held: list[dict[str, Any]]) -> None:
    rows = [
        (g["what"], g["measured"], f"{g['low']:.2f} to {g['high']:.2f}", "held" if g["held"] else "MISSED")
        for g in held
    ]
    title = f"The lab, on {run.args.problems} held-out problems at temperature 0.7"
    table(run, title, ("", "measured", "range", ""), rows)
    by = {m: figures["solved"]["test"][m]["by"] for m in ("lab-weak", "lab-strong")}
    strata = [*figures["solved"].items(), *((key, {m: by[m][key] for m in by}) for key in by["lab-weak"])]
    solved = [
        (key, row["lab-weak"]["solved"], row["lab-strong"]["solved"], row["lab-weak"]["n"]) for key, row in strata
    ]
    table(run, "Solved, by split and by stratum of the test split", ("", "lab-weak", "lab-strong", "n"), solved)
    rules = [
        (k, FAMILIES[k].right_rate if k in FAMILIES else 1.0, v["solved"], v["n"])
        for k, v in figures["right_rule"].items()
    ]
    table(run, "Right uses of a rule at temperature 1", ("rule", "in its corpus", "lab-weak", "n"), rules)
    cover = figures["coverage"]
    places = [(k, v["accuracy"], v["covered"], v["of"]) for k, v in cover.items() if isinstance(v, dict)]
    title = (
        f"Problems that lab-weak fails {cover['samples']} times of {cover['samples']}, continued on fresh samples from"
    )
    table(run, title, ("", "accuracy", "solved at least once", "of"), places)
    scorer = figures["scorer"]
    names = {"S0": "right so far", "S1": "wrong earlier", "S2": "wrong just now"}
    states = [(f"{k}, {names[k]}", m, scorer["lag1"].get(k), scorer["steps"][k]) for k, m in scorer["means"].items()]
    table(run, "lab-scorer on lab-weak's steps", ("step is", "mean score", "lag-1 correlation", "steps"), states)
    blind = [(k, v) for k, v in scorer["auroc_by_first_error"].items()]
    table(run, "AUROC by the rule of the first error", ("rule", "AUROC"), blind)
    if "sham" in figures:
        sham = figures["sham"]
        change = f"from {sham['before']:.3f} to {sham['solved']:.3f}"
        run.say(f"Sham: {sham['tokens']:,} more tokens of its own corpus take lab-weak {change}.")


def table(run: Run[Any], title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*("" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in row))
    run.console.print(shown)
