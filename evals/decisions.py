"""What one decision of a routing policy costs, in microseconds of the processor.

--data is TRIM's published parameters as plain JSON; without it, a stand-in of the same size (30 steps; 20 bins of the
current score, or 400 of the pair of least earlier and current score). The bar for one decision is 50 microseconds. For
the threshold on the score and each policy on the belief:

  update       the belief at the next draft from the one before it and the draft's score
  step 1       keep or escalate at the first draft of a solution: one update and the decision itself
  step n       the same at the n-th draft: policies have no state, so the filter goes over all n

Each figure is the best of --repeats; the bar is held where the dearest is below it. Writes decisions.json.
"""

from __future__ import annotations

import json
import random
import time
import timeit
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from stepwise.routing.policies import Threshold
from stepwise.routing.policy import Policy, View
from stepwise.routing.pomdp.filter import ObservationLaw, StepFilter
from stepwise.routing.pomdp.policies import BeliefThreshold, Planned, Published
from stepwise.runs.progress import followed
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Problem, Step, Usage

from .pomdp import load

BAR = 50.0  # microseconds
STEPS = (1, 10, 30)
TOKENS = Usage(generated_tokens=60)


class _Options(Options):
    data: Path | None = None
    """published parameters; without it, a stand-in"""
    repeats: PositiveInt = 20
    """best of so many"""
    calls: PositiveInt = 1000
    """calls per repeat"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> int:
    rows = [
        {"policy": policy.name, "history": history, "observation": observation, **measure(policy, run.args)}
        for observation, history, policy in followed(policies(run.args.data), "policies timed")
    ]
    result = {"data": "published" if run.args.data else "stand-in", "bar_us": BAR, "rows": rows}
    run.path("decisions.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _print(run, rows)
    return run.missed(row["policy"] for row in rows if not row["held"])


def policies(data: Path | None) -> list[tuple[str, str, Policy]]:
    """(observation, history of the belief, policy) of each row."""
    found: list[tuple[str, str, Policy]] = [("score", "", Threshold(0.5))]
    observations: tuple[Literal["score", "pair"], ...] = ("score", "pair")
    for observation in observations:
        model = load(data, observation)
        law = ObservationLaw(tuple(i / 20 for i in range(21)), model.observation, pair=observation == "pair")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a filter on the pair is no good, but costs what it costs
            found += [
                (observation, "filter", BeliefThreshold(model, law)),
                (observation, "memoryless", BeliefThreshold(model, law, history="memoryless")),
                (observation, "filter", Planned(model, law)),
                (observation, "", Published(model, law)),
            ]
    return found


def measure(policy: Policy, args: _Options) -> dict[str, Any]:
    """Microseconds per call; what is made at the first decision (the plan) is made before."""

    def best(work: Callable[[], object]) -> float:
        work()
        spent = timeit.repeat(work, number=args.calls, repeat=args.repeats, timer=time.process_time)
        return float(min(spent) / args.calls * 1e6)

    decisions = {f"step_{n}_us": best(partial(policy.decide, view(n))) for n in STEPS}
    belief: StepFilter | None = getattr(policy, "filter", None)
    update = best(lambda: belief.drafted(belief.committed((0.3, 0.2, 0.5)), 0.4, 0.7)) if belief else None
    dearest = max(decisions.values())
    return {"update_us": update, **decisions, "of_bar": dearest / BAR, "held": dearest < BAR}


def view(steps: int) -> View:
    """The draft of step `steps` (1-based), a third of the steps before it escalated."""
    rng = random.Random(steps)

    def step(index: int) -> Step:
        draft = Step(f"Step {index}.", "weak", rng.random(), TOKENS)
        return draft if rng.random() > 1 / 3 else Step(f"Strong {index}.", "strong", 0.9, TOKENS, discarded=(draft,))

    before = tuple(step(index) for index in range(steps - 1))
    return View(Problem("p", "How many?"), before, Step("A draft.", "weak", 0.4, TOKENS), "step")


def _print(run: Run[_Options], rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title=f"Microseconds of one decision; bar: {BAR:.0f}", title_justify="left")
    for column in ("policy", "update", *(f"step {n}" for n in STEPS), "of bar", ""):
        table.add_column(column, justify="left" if column in ("policy", "") else "right")
    for row in rows:
        table.add_row(
            ", ".join(filter(None, (row["policy"], row["history"], row["observation"]))),
            "" if row["update_us"] is None else f"{row['update_us']:.2f}",
            *(f"{row[f'step_{n}_us']:.1f}" for n in STEPS),
            f"{row['of_bar']:.2f}",
            "held" if row["held"] else "MISSED",
        )
    run.console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
