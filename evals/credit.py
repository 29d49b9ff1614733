"""How far the gradient of each credit scheme points where the true advantage's does, in the lab.

The same rollouts of the training pool are credited by every scheme. The true advantage of a step is the change in the
model's success rate, from --continuations fresh rollouts at every step boundary (VinePPO, arXiv 2410.01679, section 3);
the gradient is that of the policy loss in a LoRA adapter's weights, summed over rollouts by a constant. Told are

  same     cosine with the true advantage's gradient on the same rollouts: the bias of the credit
  mixed    the same over the groups that have right and wrong rollouts, where outcomes alone give credit too
  others   cosine with it on the other half of the problems, over random halves: what is left of it as a direction
  wrong    share of the groups without a right rollout that have a signal
  k        tokens generated and evaluated to find the credit, in thousands

with 95 % intervals, problems drawn again. credit.json has besides the length of the gradient by the true one's, and the
share of all groups with a signal. A lab figure: a test bed, no benchmark.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from rich import box
from rich.table import Table

from stepwise.config import Config
from stepwise.credit import load_credit
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import percentile
from stepwise.training.crediting import credit_groups, groups_of
from stepwise.training.labels import Labeller
from stepwise.training.lora import Trainee, load_trainee
from stepwise.training.policy import RolloutRow, update
from stepwise.training.rollouts import RlRollout, grade_rollouts
from stepwise.training.sampler import Sampler, exact_weights
from stepwise.types import Problem

from .training import sampled_by
from .training_arms import pool_of

Vectors = NDArray[np.float32]
TRUTH = "true advantage"
DRAWS = 500


@dataclass(frozen=True)
class Way:
    """A scheme with its settings; `shift` moves true first errors by so many steps, None where none are given."""

    credit: dict[str, Any]
    shift: int | None = None


def _given(scheme: str, shift: int = 0, **more: Any) -> Way:
    return Way({"scheme": scheme, "first_error": "given", **more}, shift)


WAYS: dict[str, Way] = {
    "outcome": Way({"scheme": "outcome"}),
    "outcome, RLOO": Way({"scheme": "outcome", "leave_one_out": True}),
    "first_error, true": _given("first_error"),
    "first_error, scorer": Way({"scheme": "first_error"}),
    "first_error, rest": _given("first_error", blame="rest"),
    "first_error, before": _given("first_error", -1),
    "first_error, after": _given("first_error", 1),
    "shuffled, true": _given("shuffled"),
    "vppo, true": _given("vppo"),
    "vppo, scorer": Way({"scheme": "vppo"}),
    "pure_min": Way({"scheme": "pure_min"}),
    "vineppo, 4": Way({"scheme": "vineppo", "continuations": 4}),
}


@dataclass(frozen=True)
class Told:
    """One way on all groups: gradients (groups, weights), which have a signal, and tokens spent on the credit."""

    gradients: Vectors
    signal: NDArray[np.bool_]
    tokens: int


class _Options(Options):
    problems: PositiveInt = 40
    """of the pool"""
    continuations: PositiveInt = 32
    """of the truth"""
    adapter: Path | None = None
    """of the policy, in PEFT's layout"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    args = run.args
    cfg = sampled_by(exact_weights(run.config, run.out))
    found, right = credited(cfg, [made.problem for made in pool_of(args.problems)], args.continuations, args.adapter)
    truth = found[TRUTH]
    rows = {name: compared(told, truth, right) for name, told in found.items()}
    run.path("credit.json").write_text(json.dumps(rows, indent=1) + "\n")
    run.say(f"{args.problems} problems, {cfg.rl.group} rollouts each; none right in {int((right == 0).sum())} groups")
    run.console.print(shown(rows))
    run.say("Lab figures: a test bed, no benchmark; one model, one draw of rollouts.")


def credited(
    cfg: Config, problems: Sequence[Problem], continuations: int, adapter: Path | None
) -> tuple[dict[str, Told], NDArray[np.float64]]:
    """Every way, the truth first, on the same rollouts; and the share of right rollouts of each group."""
    truth = Way({"scheme": "vineppo", "continuations": continuations})
    with ExitStack() as stack:
        sampler, trainee = stack.enter_context(Sampler(cfg)), load_trainee(cfg, adapter=adapter)
        prompts = sampler.prompts(problems, trainee)
        sampler.attach(trainee)
        known = {problem.id: problem for problem in problems}
        drawn, _ = sampler.sample(problems, prompts, step=1)
        rollouts = grade_rollouts(drawn, known, cfg.rl.no_answer)
        found = {}
        with progress("credit schemes", len(WAYS) + 1) as advance:
            for name, way in {TRUTH: truth, **WAYS}.items():
                # Another seed for the truth: an estimate from the same continuations would look better than it is.
                seed = cfg.seed + (name == TRUTH)
                found[name] = told(cfg, known, prompts, sampler, trainee, rollouts, way, seed)
                advance(1)
    groups = [rollouts[at : at + cfg.rl.group] for at in range(0, len(rollouts), cfg.rl.group)]
    return found, np.array([np.mean([row.reward == 1 for row in group]) for group in groups])


def told(
    cfg: Config,
    problems: Mapping[str, Problem],
    prompts: Mapping[str, tuple[int, ...]],
    sampler: Sampler,
    trainee: Trainee,
    rollouts: Sequence[RlRollout],
    way: Way,
    seed: int,
) -> Told:
    """One way's credit, and the gradient of each group under it."""
    values = cfg.model_dump()
    values["rl"]["credit"] |= way.credit
    cfg = Config.model_validate({**values, "seed": seed})
    locate = None if way.shift is None else located(way.shift, len(problems))
    with closing(Labeller(cfg, problems, prompts, sampler, trainee, locate=locate)) as labeller:
        labels, usage, _ = labeller.label(rollouts)
    _, advantages, kept = credit_groups(rollouts, labels, load_credit(cfg.rl.credit), seed)
    rows = [
        [
            RolloutRow(prompts[rollouts[i].problem], rollouts[i].token_ids, advantages=advantages[i], weight=1.0)
            for i in group
            if kept[i]
        ]
        for group in groups_of(rollouts)
    ]
    gradients = np.stack([gradient(trainee, group, cfg) for group in rows])
    return Told(gradients, np.array([bool(group) for group in rows]), usage.generated_tokens + usage.evaluated_tokens)


def located(shift: int, num_problems: int) -> Any:
    """First errors by the problems' own checker, moved by `shift` steps."""
    from .training_arms import Arm, locate_in

    return locate_in(pool_of(num_problems), Arm(truth=True, shift=shift))


def gradient(trainee: Any, rows: Sequence[Any], cfg: Config) -> Vectors:
    """Of the policy loss of one group, all weights of the adapter in one vector; zeros of no rows."""
    weights = [weight for weight in trainee.model.parameters() if weight.requires_grad]
    if not rows:
        return np.zeros(sum(weight.numel() for weight in weights), np.float32)
    taken: list[Vectors] = []

    def take() -> float:
        taken.append(np.concatenate([weight.grad.flatten().numpy().copy() for weight in weights]))
        trainee.model.zero_grad(set_to_none=True)
        return 0.0

    update(trainee, rows, cfg, take)
    return taken[0]


def compared(one: Told, truth: Told, right: NDArray[np.float64]) -> dict[str, Any]:
    """What is told of one way, each figure with its interval where it has one; `right` has shares (groups,)."""
    rng, groups = np.random.default_rng(0), len(one.gradients)
    inner = one.gradients @ truth.gradients.T  # all that the cosines of sums over groups need
    own, true = one.gradients @ one.gradients.T, truth.gradients @ truth.gradients.T
    wrong, mixed = right == 0, np.flatnonzero((right > 0) & (right < 1))
    same, spread, others, sizes = [], [], [], []
    for _ in range(DRAWS):
        at = rng.integers(groups, size=groups)
        same.append(_cosine(inner, own, true, at, at))
        drawn = rng.choice(mixed, size=len(mixed))
        spread.append(_cosine(inner, own, true, drawn, drawn))
        half = rng.permutation(groups)
        others.append(_cosine(inner, own, true, half[: groups // 2], half[groups // 2 :]))
        sizes.append(np.sqrt(own[np.ix_(at, at)].sum() / max(true[np.ix_(at, at)].sum(), 1e-30)))
    everything = np.arange(groups)
    return {
        "same": percentile([_cosine(inner, own, true, everything, everything), *same]),
        "mixed": percentile([_cosine(inner, own, true, mixed, mixed), *spread]),
        "others": percentile([float(np.mean(others)), *others]),
        "size": percentile([float(np.sqrt(own.sum() / max(true.sum(), 1e-30))), *sizes]),
        "signal": float(one.signal.mean()),
        "signal where all are wrong": float(one.signal[wrong].mean()) if wrong.any() else None,
        "tokens": one.tokens,
    }


def _cosine(inner: Any, own: Any, true: Any, ours: Any, theirs: Any) -> float:
    """Between the sums of our gradients over the groups `ours` and of the true ones over `theirs`; 0 without length."""
    length = np.sqrt(max(own[np.ix_(ours, ours)].sum(), 0.0) * max(true[np.ix_(theirs, theirs)].sum(), 0.0))
    return float(inner[np.ix_(ours, theirs)].sum() / length) if length > 0 else 0.0


def shown(rows: dict[str, dict[str, Any]]) -> Table:
    """The table, at 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for place, column in enumerate(("credit", "same", "mixed", "others", "wrong", "k")):
        table.add_column(column, justify="left" if not place else "right", no_wrap=True)
    for name, row in rows.items():
        cosines = [_interval(*row[key]) for key in ("same", "mixed", "others")]
        alone = row["signal where all are wrong"]
        table.add_row(name, *cosines, "" if alone is None else f"{alone:.2f}", f"{row['tokens'] / 1000:.0f}")
    return table


def _interval(value: float, low: float, high: float) -> str:
    return " ".join(f"{part:.2f}".replace("0.", ".", 1) for part in (value, low, high))


if __name__ == "__main__":
    sys.exit(main())
