"""The weak model asks for help itself (RelayLLM), beside policies that read a scorer, in the lab.

Warm start: training problems are routed by a threshold on lab-scorer, and lab-weak is trained to ask where a step was
escalated and that helped. Then reinforcement, once for each of --costs, with what a strong token costs in the reward.
Operating points of every arm are chosen on other problems (--calibrate), and all are measured on the same held-out
ones: the share of the gap between the two models that an arm recovers at shares of the strong model's tokens, and how
far it is from the threshold, paired by problem (95 %). Beside it: how well the probability of a call, before the step
is written, tells lab-weak's first errors from its right steps, against what scores say afterwards; and how many wrong
drafts can be caught at all by who decides before a draft is there (--draws from each right beginning: half of them
rank, the others are counted), against who sees it. One seed of training. A killed run goes on where it was. Writes
asking.json. Lab figures.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from stepwise.config import Config
from stepwise.data.calls import call_rows
from stepwise.data.scorer_quality import measure_scores
from stepwise.data.step_labels import LabelledSolution
from stepwise.lab.problems import LabProblem, generate
from stepwise.models import load_backend
from stepwise.models.base import Request
from stepwise.models.scorers import load_scorer
from stepwise.models.store import CallCache
from stepwise.routing import Always, Never, Policy, StepRouter, Threshold
from stepwise.routing.compare import Measured, compare
from stepwise.routing.entries import FittingData, entries_of
from stepwise.routing.estimates import Estimate, Outcomes, difference, estimate
from stepwise.routing.metrics import OperatingPoint, accuracy_at
from stepwise.routing.relay import MARKER, Relay, log_odds
from stepwise.routing.signal_policies import threshold_at
from stepwise.runs.shell import Options, Run, program
from stepwise.training import grpo, sft
from stepwise.training.head import train_probe
from stepwise.types import Problem, Step, Trace

BUDGETS = (0.03, 0.05, 0.1, 0.2, 0.3)
"""Shares of the strong model's own tokens."""
FLAGGED = (0.03, 0.05, 0.1, 0.2, 0.3)
"""Shares of all drafts that are escalated, to see how many wrong ones are among them."""
SHARES = (0.03, 0.08, 0.15, 0.3)
"""Of the steps on other problems that are escalated, by the probe and by who asks."""


class _Options(Options):
    train: PositiveInt = 300
    """training problems, of all that is trained or fitted"""
    calibrate: PositiveInt = 100
    """others, for operating points"""
    problems: PositiveInt = 200
    """held out"""
    threshold: float = 0.9
    """of the routing that the warm start learns from"""
    batches: PositiveInt = 5
    """of 8 problems x 8 rollouts, for each cost"""
    costs: tuple[float, ...] = (0.005,)
    """of a strong token, in right answers"""
    draws: PositiveInt = 16
    """of the next step from each right beginning of lab-weak's solutions, for what can be known before a draft"""
    points: PositiveInt = 6
    """operating points of threshold and plan"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    args = run.args
    labs = generate("test", args.problems)
    measured = [lab.problem for lab in labs]
    parts = (("train", args.train), ("val", args.calibrate))
    training, others = ([lab.problem for lab in generate(split, n)] for split, n in parts)
    with (
        CallCache(run.path("base.jsonl")) as cache,
        StepRouter.from_config(run.config, policy=Never(), cache=cache) as router,
    ):
        data = FittingData(router, others, training, measured, args.points)
        policies = {entry.name: entry.policies(data) for entry in entries_of(["threshold", "planned"])[2:]}
        alone = _measured(run, run.config, "base", [Never(), Always()], measured)
        arms = {name: _measured(run, run.config, "base", made, measured) for name, made in policies.items()}
        routed = data.routed(Threshold(args.threshold), training)
    head = _probe(run, generate("train", args.train))
    probed = run.config.model_copy(update={"scorer": head})
    thresholds = _scores_of(run, probed, others)
    arms["probe"] = _measured(run, probed, "probe", _spread(Threshold(0.5), "low", thresholds), measured)
    asking = _trained(run, routed, training)
    odds: dict[str, Callable[[Sequence[tuple[Problem, Sequence[str]]]], list[list[float]]]] = {}
    for name, adapter in asking.items():
        cfg = _with_adapter(run.config, adapter)
        seen = [x for line in _odds(cfg, _own(run, cfg, name, others, Relay(bias=-100.0))) for x in line]
        relays = [policy.at(-policy.point) for policy in _spread(Relay(), "high", seen)]
        arms[f"asks, {name}"] = _measured(run, cfg, name, relays, measured)
        odds[f"P(call), {name}"] = lambda items, cfg=cfg: _odds(cfg, items)  # type: ignore[misc]
    _show(run, alone, arms)
    _show_auroc(run, labs, odds, head)
    _show_caught(run, labs, odds)


# ----- training


def _trained(run: Run[_Options], routed: Sequence[Trace], problems: Sequence[Problem]) -> dict[str, Path]:
    """Adapters in GGUF by what they are called: the warm start, and what reinforcement made of it at each cost."""
    args, counts = run.args, Counter[str]()
    overrides = {
        "marker": MARKER,
        "steps": args.batches,
        "problems": 8,
        "learning_rate": 1e-3,
        "max_tokens": 400,
        "look": 0,
    }
    cfg = run.config.model_copy(update={
        "rl": run.config.rl.model_copy(update=overrides),
        "sft": run.config.sft.model_copy(update={"epochs": 3, "batch": 32, "learning_rate": 1e-3}),
    })  # fmt: skip
    rows = call_rows(routed, cfg, counts)
    run.say(f"Warm start: {dict(counts)}, {len(rows)} rows")
    warm = sft(rows, cfg, run.path("warm"))
    found = {"warm start": warm}
    for cost in args.costs:
        priced = cfg.model_copy(update={"rl": cfg.rl.model_copy(update={"strong_cost": cost})})
        found[f"RL at {cost:g}"] = grpo(problems, priced, run.path(f"rl-{cost:g}-{args.batches}"), adapter=warm)
    return {name: folder / "adapter.gguf" for name, folder in found.items()}


def _probe(run: Run[_Options], labs: Sequence[LabProblem]) -> Any:
    """[scorer] of a head on lab-weak's states, fitted to its own solutions with the lab's labels."""
    traces = _own(run, run.config, "base", [lab.problem for lab in labs])
    head = train_probe(_labelled(labs, traces), run.config, run.path("probe"))
    return run.config.scorer.model_copy(update={"kind": "probe", "model": f"probe/{head}"})


def _labelled(labs: Sequence[LabProblem], items: Sequence[tuple[Problem, Sequence[str]]]) -> list[LabelledSolution]:
    return [
        LabelledSolution.of_first_error(problem.question, steps, lab.first_error(steps), "truth")
        for lab, (problem, steps) in zip(labs, items, strict=True)
        if steps
    ]


# ----- routing


def _measured(
    run: Run[_Options], cfg: Config, name: str, policies: Sequence[Policy], problems: Sequence[Problem]
) -> list[Measured]:
    """The policies on the problems; what `name`, the models of `cfg`, has answered is kept."""
    with (
        CallCache(run.path(f"{_file(name)}.answers.jsonl")) as cache,
        StepRouter.from_config(cfg, policy=policies[0], cache=cache) as router,
    ):
        return list(compare(router, policies, problems))


def _own(
    run: Run[_Options], cfg: Config, name: str, problems: Sequence[Problem], alone: Policy | None = None
) -> list[tuple[Problem, list[str]]]:
    """Problems with the weak model's own solutions; one that was taught to ask needs a policy that never lets it."""
    found = _measured(run, cfg, name, [alone or Never()], problems)[0]
    return [(view.trace.problem, [step.text for step in view.trace.steps]) for view in found.views]


def _scores_of(run: Run[_Options], cfg: Config, problems: Sequence[Problem]) -> list[float]:
    """What the scorer says of the weak model's own steps."""
    found = _measured(run, cfg, "probe", [Threshold(0.0)], problems)[0]
    return [step.score for view in found.views for step in view.trace.steps if step.score is not None]


def _odds(cfg: Config, items: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[float]]:
    """Log-odds of a call before each step of each solution."""
    with closing(load_backend(cfg.models.weak, prompt=cfg.prompt)) as weak:
        answers: Iterator[Any] = iter(weak.continue_solutions([
            Request(problem, tuple(Step(text, "weak") for text in steps[:i]), max_tokens=1, marker=MARKER)
            for problem, steps in items
            for i in range(len(steps))
        ]))  # fmt: skip
        return [[log_odds(next(answers).call) for _ in steps] for _, steps in items]


def _spread(policy: Any, worse: Any, values: Sequence[float]) -> list[Any]:
    """The policy at settings that flag `SHARES` of `values`."""
    return [policy.at(x) for x in dict.fromkeys(threshold_at(worse, values, share) for share in SHARES)]


def _with_adapter(cfg: Config, adapter: Path) -> Config:
    weak = cfg.models.weak.model_copy(update={"adapter": str(adapter)})
    return cfg.model_copy(update={"models": cfg.models.model_copy(update={"weak": weak})})


def _file(name: str) -> str:
    return name.replace(" ", "-")


# ----- tables


def _show(run: Run[_Options], alone: Sequence[Measured], arms: dict[str, list[Measured]]) -> None:
    weak, strong = alone
    rows, result = [], []
    for name, found in arms.items():
        shares = {share: gap_at(alone, found, share) for share in BUDGETS}
        gaps = {
            share: difference([*found, *alone], [*arms["threshold"], *alone], at_cost=share * strong.point.cost)
            for share in BUDGETS
        }
        best = max(found, key=lambda m: m.point.accuracy)
        result.append({
            "arm": name, "share": {str(k): [v.value, v.low, v.high] for k, v in shares.items()},
            "over_threshold": {str(k): [v.value, v.low, v.high] for k, v in gaps.items()},
            "points": [(m.setting, m.point.cost, m.point.accuracy) for m in found],
        })  # fmt: skip
        rows.append((
            name,
            *(f"{shares[k].value:.2f} ({_points(gaps[k])})" for k in BUDGETS),
            f"{best.point.accuracy:.1%} at {best.point.cost / strong.point.cost:.0%}",
        ))  # fmt: skip
    run.path("asking.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    run.table(
        f"{len(weak.views)} problems: lab-weak alone {weak.point.accuracy:.1%}, lab-strong alone "
        f"{strong.point.accuracy:.1%} for {strong.point.cost:.0f} tokens. Share of the gap at a share of these tokens, "
        "and points of accuracy over the threshold (95 %)",
        ("", *(f"{share:.0%}" for share in BUDGETS), "best accuracy"),
        rows,
    )


def gap_at(alone: Sequence[Measured], found: Sequence[Measured], share: float) -> Estimate:
    """The share of the gap between the two models `alone` (weak, strong) that the frontier of `found` and these two
    recovers at a share of the strong model's tokens, with an interval over problems.
    """

    def recovered(points: Sequence[OperatingPoint]) -> float | None:
        weak, strong = points[:2]
        reached = accuracy_at(points, share * strong.cost)
        gap = strong.accuracy - weak.accuracy
        return None if reached is None or gap <= 0 else (reached - weak.accuracy) / gap

    return estimate(recovered, [of for m in (*alone, *found) if (of := Outcomes.of(m)) is not None])


def _points(gap: Estimate) -> str:
    value, low, high = (100 * (x or 0.0) for x in (gap.value, gap.low, gap.high))
    return f"{value:+.1f}, {low:+.1f} to {high:+.1f}"


def _show_auroc(run: Run[_Options], labs: Sequence[LabProblem], odds: Any, head: Any) -> None:
    """How well each number tells lab-weak's first errors from its right steps, on its own held-out solutions."""
    items = [(p, steps) for p, steps in _own(run, run.config, "base", [lab.problem for lab in labs]) if steps]
    kept = {p.id for p, _ in items}
    solutions = _labelled([lab for lab in labs if lab.problem.id in kept], items)
    scores = {name: [[1 - 1 / (1 + math.exp(-x)) for x in line] for line in of(items)] for name, of in odds.items()}
    for name, scorer in (("lab-scorer", run.config.scorer), ("probe", head)):
        with closing(load_scorer(scorer, prompt=run.config.prompt, weak=run.config.models.weak)) as loaded:
            scores[name] = loaded.score_batch([(p.question, steps) for p, steps in items])
    rows = []
    for name, values in scores.items():
        area = measure_scores(values, solutions, 0.5).auroc
        assert area is not None
        rows.append((name, "before" if name.startswith("P(") else "after", "{:.3f} ({:.3f} to {:.3f})".format(*area)))
        run.metrics(score=name, auroc=area)
    run.table("lab-weak's right steps against its first errors", ("", "the step is written", "AUROC (95 %)"), rows)


def _show_caught(run: Run[_Options], labs: Sequence[LabProblem], odds: Any) -> None:
    """Share of lab-weak's wrong drafts that are caught where so many of all drafts are escalated, by who escalates."""
    known = {lab.problem.id: lab for lab in labs}
    items = []
    for problem, steps in _own(run, run.config, "base", [lab.problem for lab in labs]):
        end = known[problem.id].first_error(steps)
        items.append((problem, steps[: len(steps) if end is None else end + 1]))
    with closing(load_backend(run.config.models.weak, prompt=run.config.prompt)) as weak:
        drawn = weak.continue_solutions([
            Request(problem, tuple(Step(text, "weak") for text in steps[:i]), n=run.args.draws)
            for problem, steps in items
            for i in range(len(steps))
        ])  # fmt: skip
    before = [(known[problem.id], steps[:i]) for problem, steps in items for i in range(len(steps))]
    # (beginnings, draws): whether a draft is wrong
    wrong = np.array([
        [lab.first_error([*steps, drawn[at * run.args.draws + j].text]) is not None for j in range(run.args.draws)]
        for at, (lab, steps) in enumerate(before)
    ], float)  # fmt: skip
    half = run.args.draws // 2
    ranks = {"best before a draft": wrong[:, :half].mean(1)}
    ranks |= {name: np.array([x for line in of(items) for x in line]) for name, of in odds.items()}
    rows = [(name, *(f"{caught(rank, wrong[:, half:].mean(1), share):.0%}" for share in FLAGGED))
            for name, rank in ranks.items()]  # fmt: skip
    rate = float(wrong[:, half:].mean())
    rows.append(("best with the draft", *(f"{min(1.0, share / rate):.0%}" for share in FLAGGED)))
    run.table(
        f"{wrong.size} drafts from {len(wrong)} beginnings, {rate:.1%} wrong: share of the wrong ones caught",
        ("Drafts escalated", *(f"{share:.0%}" for share in FLAGGED)), rows,
    )  # fmt: skip


def caught(rank: NDArray[np.float64], wrong: NDArray[np.float64], share: float) -> float:
    """Share of what is `wrong`, at each place, in the places that have the highest `rank`, `share` of all; equal ranks
    are taken in part.

    >>> caught(np.array([3.0, 2.0, 2.0, 1.0]), np.array([0.5, 0.5, 0.0, 0.0]), 0.5)
    0.75
    """
    taken, left = np.zeros(len(rank)), share * len(rank)
    for value in sorted(set(rank), reverse=True):
        same = rank == value
        taken[same] = min(1.0, left / same.sum())
        left -= taken[same].sum()
        if left <= 1e-9:
            break
    return float((taken * wrong).sum() / wrong.sum())


if __name__ == "__main__":
    main()
