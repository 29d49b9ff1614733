"""How tight and how fast the exact solver of TRIM's routing POMDP is.

--data is TRIM's published parameters as plain JSON; without it, a stand-in of the same size (30 steps, 400
observations). For one price per token and for eight: processor seconds, nodes, and the gap of the proven bounds over
all steps and beliefs, in points (100 is one solved problem). Other work on the machine adds to processor seconds, so a
measurement over the bar is repeated, up to three times in all, and the least counts. Writes pomdp.json.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stepwise.errors import DataError
from stepwise.routing.pomdp import RoutingPomdp
from stepwise.runs.progress import followed
from stepwise.runs.shell import Options, Run, program

GAP, ONE, EIGHT = 1e-3, 1.0, 5.0  # the bars: points, and processor seconds for one price and for eight
TRIES = 3
PRICES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75)


class _Options(Options):
    data: Path | None = None
    """published parameters; without it, a stand-in"""
    eps: float = 0.0003
    """error allowed per step, points"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> int:
    rows: list[dict[str, Any]] = []
    names: tuple[Literal["pair", "score"], ...] = ("pair", "score")
    cases = itertools.product(names, (True, False), ((0.25,), PRICES))
    for name, published, prices in followed(cases, "plans solved"):
        row = measure(load(run.args.data, name), prices, run.args.eps, published)
        rows.append({"observation": name, "published_hazard": published, **row})
    result = {"data": "published" if run.args.data else "stand-in", "eps": run.args.eps, "rows": rows}
    run.path("pomdp.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _print(run, rows)
    return run.missed(row["observation"] for row in rows if not row["held"])


def load(path: Path | None, observation: Literal["pair", "score"], bins: int = 20) -> RoutingPomdp:
    """The published model, or a stand-in with smooth score laws over so many `bins`: 20 is its size."""
    if path is not None:
        if not path.is_file():
            raise DataError(f"--data {path}: no such file; give TRIM's published parameters as JSON, or leave it out")
        return RoutingPomdp.from_dict(json.loads(path.read_text(encoding="utf-8")), observation=observation)
    middle = (np.arange(bins) + 0.5) / bins
    score = [middle**a * (1 - middle) ** b for a, b in ((4, 0.5), (1, 1), (0.5, 2))]
    laws = [np.outer(law, law).ravel() if observation == "pair" else law for law in score]
    rows = [tuple((law / law.sum()).tolist()) for law in laws]
    hazard = (0.0, 0.0, *np.linspace(0.03, 0.3, 28).tolist(), 1.0)
    return RoutingPomdp(0.866, (0.9704,), hazard, (rows[0], rows[1], rows[2]))


def measure(model: RoutingPomdp, prices: Sequence[float], eps: float, published: bool) -> dict[str, Any]:
    """Solve for each price: the largest gap, all nodes, and processor and wall seconds together."""
    bar = ONE if len(prices) == 1 else EIGHT
    cpu = wall = math.inf
    tries = 0
    while tries < TRIES and cpu > bar:
        began, began_wall = time.process_time(), time.perf_counter()
        plans = [model.solve(price, eps, published) for price in prices]
        cpu = min(cpu, time.process_time() - began)
        wall = min(wall, time.perf_counter() - began_wall)
        tries += 1
    gap = max(plan.gap for plan in plans)
    return {
        "prices": list(prices),
        "observations": len(model.observation[0]),
        "gap": gap,
        "nodes": sum(len(curve.nodes) for plan in plans for curve in plan.curves),
        "cpu_s": cpu,
        "wall_s": wall,
        "tries": tries,
        "root_values": [plan.root_value for plan in plans],
        "held": gap <= GAP * model.reward / 100 and cpu <= bar,
    }


def _print(run: Run[_Options], rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    title = f"Exact solution; bars: gap {GAP} of 100, {ONE:.0f} s for one price, {EIGHT:.0f} s for eight"
    table = Table(title=title, title_justify="left")
    for column in ("observation", "hazard", "prices", "nodes", "gap", "CPU s", "wall s", ""):
        table.add_column(column, justify="left" if column in ("observation", "hazard", "") else "right")
    for row in rows:
        table.add_row(
            row["observation"],
            "published" if row["published_hazard"] else "corrected",
            str(len(row["prices"])),
            f"{row['nodes']:,}",
            f"{row['gap']:.2e}",
            f"{row['cpu_s']:.2f}",
            f"{row['wall_s']:.2f}",
            "held" if row["held"] else "MISSED",
        )
    run.console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
