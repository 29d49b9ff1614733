"""The tables of the training comparison, at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from stepwise.io import write_text
from stepwise.lab.problems import LabProblem
from stepwise.runs.shell import Run

from .training_arms import ARMS, CLONED, CREDIT, PAPER
from .training_measures import SAMPLES, STRATA, Measured, interval, scores, strata
from .training_page import CONTROL, GROUPS, training_page


def show(
    run: Run[Any], rows: Sequence[Measured], problems: Sequence[LabProblem], reference: Measured
) -> dict[str, Any]:
    """Print all tables; what they hold, for training.json. `reference` says which problems the base fails."""
    masks, by_arm = strata(problems, reference.right), _by_arm(rows)
    summary: dict[str, Any] = {"problems": len(problems), "arms": {}}
    counts = ", ".join(f"{name} {int(mask.sum())}" for name, mask in masks.items())
    run.say(f"{len(problems)} held-out problems ({counts}); {SAMPLES} samples each at temperature 0.7")
    for title, group in GROUPS.items():
        shown = [name for name in ("base", CONTROL, *group) if name in by_arm]
        shown = list(dict.fromkeys(shown))
        if len(shown) <= 2 and title != "The paper's arms":
            continue
        run.console.print(accuracy_table(title, shown, by_arm, masks))
        run.console.print(side_table(title, shown, by_arm))
    run.console.print(family_table(by_arm, problems))
    run.console.print(length_table(by_arm, problems))
    over = differences(by_arm)
    if over:
        run.console.print(difference_table(over))
    summary["differences"] = {f"{one} over {other}": value for (one, other), value in over.items()}
    for name, found in by_arm.items():
        summary["arms"][name] = _summary(name, found, by_arm, masks)
    path = run.path("training.html")
    write_text(path, training_page(by_arm, problems, masks))
    run.say(f"Page: {path.resolve().as_uri()}")
    run.say(
        "pass@1 in percent; over sham: difference with a 95 % interval, problems and seeds drawn again together. "
        "failed by base: none of 16 other samples of the base is right. pool: on the training problems. "
        "Lab figures: a test bed, no benchmark."
    )
    seeds = min(len(found) for found in by_arm.values())
    if seeds < 8:
        run.say(f"A smoke run: {seeds} seed(s) of one weak model; rankings need eight over several weak models.")
    return summary


def accuracy_table(title: str, names: Sequence[str], by_arm: dict[str, list[Measured]], masks: Any) -> Table:
    """pass@1 of each arm: all problems, over sham, by stratum, and pass@16."""
    seen = title != "Credit" and any(row.on_training is not None for name in names for row in by_arm[name])
    columns = ("arm", "all", "over sham", "no trap", "one", "two", "failed", "@16", *(["pool"] if seen else []))
    table = _table(f"{title}: pass@1, %", columns)
    everything = np.ones(len(next(iter(masks.values()))), bool)
    for name in names:
        found, cells = by_arm[name], [name, _percent(_mean(scores(by_arm[name], 1)))]
        if CONTROL in by_arm and name != CONTROL:
            mean, low, high = interval(found, by_arm[CONTROL], everything)
            cells.append(f"{100 * mean:+.1f} ({100 * low:+.0f},{100 * high:+.0f})")
        else:
            cells.append("")
        cells += [_percent(_mean(scores(found, 1)[:, masks[key]])) for key in STRATA]
        cells.append(_percent(_mean(scores(found, SAMPLES))))
        known = [row.on_training for row in found if row.on_training is not None]
        table.add_row(*cells, *([_percent(_mean(known))] if seen else []))
    return table


Differences = dict[tuple[str, str], tuple[float, float, float]]


def differences(by_arm: dict[str, list[Measured]]) -> Differences:
    """Mean differences in pass@1 with intervals: InT and RL over the other arms with RL, what is cloned over InT alone,
    each credit scheme over outcomes.
    """
    pairs = [("int+rl", name) for name, arm in PAPER.items() if arm.rl is not None and name != "int+rl"]
    pairs += [(name, "int") for name in CLONED if name.startswith("int, ")]
    pairs += [(name, "rl") for name in CREDIT]
    known = [(one, other) for one, other in pairs if one in by_arm and other in by_arm]
    everything = np.ones(len(next(iter(by_arm.values()))[0].right), bool)
    return {(one, other): interval(by_arm[one], by_arm[other], everything) for one, other in known}


def difference_table(found: Differences) -> Table:
    """The differences in points, with 95 % intervals."""
    table = _table("Differences: pass@1, points", ("arm", "over", "difference", "95 %"))
    for (one, other), (mean, low, high) in found.items():
        table.add_row(one, other, f"{100 * mean:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}")
    return table


def side_table(title: str, names: Sequence[str], by_arm: dict[str, list[Measured]]) -> Table:
    """Beside accuracy: entropy, groups without spread, tokens and what else was used up."""
    columns = ("arm", "entropy", "after SFT", "no spread", "trained", "sampled", "labels")
    table = _table(f"{title}: entropy (nats), groups without spread, tokens (k)", columns)
    for name in names:
        found = by_arm[name]
        after = [row.entropy_after_sft for row in found if row.entropy_after_sft is not None]
        spread = [row.no_spread for row in found if row.no_spread is not None]
        table.add_row(
            name,
            f"{np.mean([row.entropy for row in found]):.3f}",
            f"{np.mean(after):.3f}" if after else "",
            f"{np.mean([a for a, _ in spread]):.2f} > {np.mean([b for _, b in spread]):.2f}" if spread else "",
            *(f"{np.mean([row.cost[key] for row in found]) / 1000:.0f}" for key in ("trained", "generated")),
            ARMS[name].labels,
        )
    return table


def family_table(by_arm: dict[str, list[Measured]], problems: Sequence[LabProblem]) -> Table:
    """pass@1 over the problems that hold each family of traps."""
    families = sorted({trap for made in problems for trap in made.traps})
    short = [name.replace("reversed", "rev").replace("_", " ")[:6].strip() for name in families]
    table = _table("By family: pass@1, %", ("arm", *short))
    for name, found in by_arm.items():
        one = scores(found, 1)
        masks = [np.array([family in made.traps for made in problems]) for family in families]
        table.add_row(name, *(f"{100 * one[:, mask].mean():.0f}" for mask in masks))
    return table


def length_table(by_arm: dict[str, list[Measured]], problems: Sequence[LabProblem]) -> Table:
    """pass@1 over the problems of each length, in operations."""
    lengths = np.array([len(made.operations) for made in problems])
    known = sorted(set(lengths.tolist()))
    table = _table("By length (operations): pass@1, %", ("arm", *(str(length) for length in known)))
    for name, found in by_arm.items():
        table.add_row(name, *(_percent(_mean(scores(found, 1)[:, lengths == length])) for length in known))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if not place else "right", no_wrap=True)
    return table


def _by_arm(rows: Sequence[Measured]) -> dict[str, list[Measured]]:
    found = {name: sorted((r for r in rows if r.arm == name), key=lambda r: r.seed) for name in ARMS}
    return {name: rows for name, rows in found.items() if rows}


def _summary(name: str, found: list[Measured], by_arm: dict[str, list[Measured]], masks: Any) -> dict[str, Any]:
    everything = np.ones(len(found[0].right), bool)
    over = None if CONTROL not in by_arm else interval(found, by_arm[CONTROL], everything)
    return {
        "seeds": [row.seed for row in found],
        "pass@k": {k: float(scores(found, k).mean()) for k in (1, 2, 4, 8, 16)},
        "by seed": [float(scores([row], 1).mean()) for row in found],
        "over sham": over,
        "on training": [row.on_training for row in found],
        "strata": {key: _mean(scores(found, 1)[:, mask]) for key, mask in masks.items() if mask.any()},
        "entropy": [row.entropy for row in found],
        "entropy after SFT": [row.entropy_after_sft for row in found],
        "no spread": [row.no_spread for row in found],
        "cost": [row.cost for row in found],
        "labels": ARMS[name].labels,
    }


def _mean(values: Any) -> float | None:
    """None of nothing."""
    return float(np.mean(values)) if np.size(values) else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
