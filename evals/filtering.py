"""Guided rollouts saved by stopping early, on candidates of the lab whose every rollout was made beforehand.

`collect` makes 64 guided rollouts of each candidate: 32 that the rules see, and 32 that tell its true rate. A rule is
replayed on the first 32 in many random orders: how many rollouts it takes per candidate, and which share it still
finds of the candidates with a success in 32, and of those with a true rate of 10 % or more. What the distribution of
rates allows follows from a beta distribution: one fit to InT's published counts (arXiv 2601.14209: 14,766 candidates,
20,170 of 472,320 rollouts right, 2,213 with a success), one to the lab's. Rates drawn from the former also show what
choosing among four candidates of an attempt costs and brings. Writes filtering.json.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from stepwise.grading import Verdict
from stepwise.interventions.collection import collect, read_stage
from stepwise.interventions.filtering import (
    INT_PRIOR,
    Beta,
    Wanted,
    chosen,
    counts_of,
    fit_beta,
    guided_by,
    ranked,
    replay,
)
from stepwise.interventions.rows import Candidate, GuidedRollout, Made
from stepwise.interventions.settings import CollectSettings
from stepwise.runs.shell import Options, Run, program

if TYPE_CHECKING:
    from rich.table import Table

SEEN = 32  # rollouts that rules see; as many tell the true rate
FLOOR = 0.1
GIVE_UP = (2, 4, 6, 8, 12, 16, 24)
BINS = (0, 1, 4, 9, 17, 25, 32, 33)  # of successes in 32
ATTEMPTS = 2000  # simulated
AS_INT = "first that parses, all 32"
_by_success = partial(CollectSettings, accept="success", fresh=0, check_form=False)
CHOICES = {
    AS_INT: _by_success(enough=None, miss=0.0, compare=0),
    "best, all 32": _by_success(enough=None, miss=0.0, compare=0, batch=32),
    "first with a success": _by_success(keep="first", compare=0),
    "best, not compared": _by_success(compare=0),
    "best, compared": _by_success(),
    "the same, measured afresh": _by_success(fresh=8),
}
Outcomes = NDArray[np.bool_]  # (candidates, rollouts)


class _Options(Options):
    lab: PositiveInt = 100
    """problems"""
    split: str = "train"
    """of the lab's problems"""
    candidates: PositiveInt = 2
    """per attempt"""
    orders: PositiveInt = 100
    """random orders"""


@dataclass(frozen=True)
class Replayed:
    """What a rule does, means over candidates and orders: rollouts per candidate, and the shares found."""

    rollouts: float
    found: float
    found_above: float


@program(_Options, doc=__doc__)
def main(run: Run[_Options], given: tuple[Sequence[str], Outcomes] | None = None, attempts: int = ATTEMPTS) -> None:
    owners, outcomes = given or collected(run)
    seen, truth = outcomes[:, :SEEN], outcomes[:, SEEN:].mean(axis=1)
    if not seen.any() or not (truth >= FLOOR).any():
        run.say(f"None of {len(seen)} candidates has a success: there is nothing to compare; take more problems.")
        return
    rng = np.random.default_rng(run.config.seed)
    orders = [rng.permuted(seen, axis=1) for _ in range(run.args.orders)]
    rules = {name: replayed(rule, orders, truth) for name, rule in rules_of().items()}
    lab = fitted(seen)
    histogram = np.histogram(seen.sum(axis=1), BINS)[0]
    told = winners(owners, orders, truth)
    choices = {name: simulated(settings, run.config.seed, attempts) for name, settings in CHOICES.items()}
    report = {
        "candidates": len(seen),
        "with a success in 32": int(seen.any(axis=1).sum()),
        "with a true rate of 10 % or more": int((truth >= FLOOR).sum()),
        "successes in 32": dict(zip(_labels(), histogram.tolist(), strict=True)),
        "rules": {name: vars(found) for name, found in rules.items()},
        "beta": {"InT": vars(INT_PRIOR), "lab": None if lab is None else vars(lab)},
        "allowed": {name: allowed(prior) for name, prior in (("InT", INT_PRIOR), ("lab", lab)) if prior is not None},
        "best of an attempt": told,
        "choosing among four (simulated)": choices,
    }
    run.path("filtering.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(run, report, rules, lab)


def collected(run: Run[_Options]) -> tuple[list[str], Outcomes]:
    """The attempts of the candidates, and the outcomes of all their rollouts; made where they are not there yet."""
    from stepwise.lab.problems import generate

    critic = run.config.critic.model_copy(update={"candidates": run.args.candidates})
    config = run.config.model_copy(update={"critic": critic})
    settings = _by_success(
        rollouts=2, attempts=1, max_tokens=300, guided=2 * SEEN, batch=2 * SEEN, enough=None, miss=0.0, keep="all",
        check_sums=False,
    )  # fmt: skip
    problems = [made.problem for made in generate(run.args.split, run.args.lab)]
    collect(problems, config, run.directory, settings=settings)
    made: defaultdict[str, list[bool]] = defaultdict(list)
    for row in read_stage(run.out, "guided"):
        made[row.candidate].append(row.verdict == "CORRECT")
    owners = {row.id: row.failure for row in read_stage(run.out, "candidates")}
    return [owners[name] for name in made], np.asarray(list(made.values()), dtype=bool).reshape(len(made), 2 * SEEN)


def rules_of() -> dict[str, CollectSettings]:
    """The rules by name; a bound on the loss that gives up after n failures is (1 - floor)^n, rounded up."""
    rules = {
        "all 32": _rule(SEEN, None, 0.0),
        "32 or a success": _rule(SEEN, 1, 0.0),
    }
    for n in GIVE_UP:
        rules[f"{n} or a success"] = _rule(SEEN, 1, round((1 - FLOOR) ** n + 5e-10, 9))
    rules["12, one by one"] = _rule(12, 1, 0.0, batch=1)
    return rules


def _rule(guided: int, enough: int | None, miss: float, batch: int = 8) -> CollectSettings:
    return _by_success(guided=guided, enough=enough, floor=FLOOR, miss=miss, batch=batch)


def replayed(rule: CollectSettings, orders: Sequence[Outcomes], truth: NDArray[np.float64]) -> Replayed:
    """`rule` on each order of the candidates' outcomes, each (candidates, 32); truth: their rates, (candidates,)."""
    seen = np.asarray([[replay(row.tolist(), rule) for row in outcomes] for outcomes in orders])  # (orders, C, 2)
    found = seen[:, :, 0] > 0
    return Replayed(
        float(seen[:, :, 1].mean()),
        float(found[:, orders[0].any(axis=1)].mean()),
        float(found[:, truth >= FLOOR].mean()),
    )


def fitted(seen: Outcomes) -> Beta | None:
    """The beta distribution with the same mean rate and share of candidates with a success; None without one."""
    mean, found = float(seen.mean()), float(seen.any(axis=1).mean())
    return fit_beta(mean, found, SEEN) if 0 < mean < found < 1 - (1 - mean) ** SEEN else None


def allowed(prior: Beta) -> dict[str, float]:
    """How many times fewer rollouts than 32 find 70, 90 and 95 % of what 32 would, at best."""
    factors = {}
    for share in (0.7, 0.9, 0.95):
        n = next(n for n in range(1, SEEN + 1) if prior.found(n, SEEN) >= share)
        factors[f"{share:.2f}"] = SEEN / prior.cost(n)
    return factors


def winners(owners: Sequence[str], orders: Sequence[Outcomes], truth: NDArray[np.float64]) -> dict[str, Any]:
    """The rate of the best candidate of each attempt with several: as those rollouts tell it that chose it, and afresh.

    Chosen by shares of all 32, or by the posterior mean after the library's default rule.
    """
    attempts: defaultdict[str, list[int]] = defaultdict(list)
    for at, owner in enumerate(owners):
        attempts[owner].append(at)
    several = [found for found in attempts.values() if len(found) > 1]
    report: dict[str, Any] = {"attempts with several": len(several)}
    for name, rule in (("all 32", _rule(SEEN, None, 0.0)), ("12 or a success", _by_success())):
        told, fresh = [], []
        for outcomes in orders:
            for found in several:
                counts = {str(at): replay(outcomes[at].tolist(), rule) for at in found}
                best = ranked(counts)[0]
                if counts[best][0]:
                    told.append(counts[best][0] / counts[best][1])
                    fresh.append(truth[int(best)])
        if told:
            report[name] = {"told": float(np.mean(told)), "fresh": float(np.mean(fresh))}
    return report


def simulated(settings: CollectSettings, seed: int, attempts: int = ATTEMPTS) -> dict[str, float]:
    """What becomes of so many attempts with four candidates each, whose rates are drawn from InT's distribution.

    Guided rollouts per attempt, the share of attempts that end with an example, and of those examples the mean rate:
    the true one, and the one that is told.
    """
    rng = np.random.default_rng(seed)
    rates = rng.beta(INT_PRIOR.a, INT_PRIOR.b, size=(attempts, 4))
    made = Made("simulated", "", "", 0)
    candidates = [Candidate(f"p/r{i}/c{k}", "p", f"p/r{i}", 0, "", made) for i in range(attempts) for k in range(4)]
    rate_of = {row.id: float(rate) for row, rate in zip(candidates, rates.ravel(), strict=True)}
    if settings == CHOICES[AS_INT]:
        candidates = candidates[::4]

    def sample(wanted: Sequence[Wanted]) -> list[GuidedRollout]:
        return [
            GuidedRollout(
                f"{one.candidate.id}/g{one.first + i}", "p", one.first + i, "", "eos", made, candidate=one.candidate.id,
                phase=one.phase, verdict=Verdict.CORRECT if draw < rate_of[one.candidate.id] else Verdict.WRONG,
            )
            for one in wanted for i, draw in enumerate(rng.random(one.n))
        ]  # fmt: skip

    guided = guided_by(candidates, sample, settings)
    kept = chosen(candidates, guided, settings)
    counts, fresh = counts_of(guided), counts_of(guided, fresh=True)
    told = [fresh.get(row.id, counts[row.id]) for row in kept]
    return {
        "rollouts": len(guided) / attempts,
        "attempts": len(kept) / attempts,
        "rate": float(np.mean([rate_of[row.id] for row in kept])),
        "told": float(np.mean([successes / asked for successes, asked in told])),
    }


def _labels() -> list[str]:
    return [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(BINS)]


def show(run: Run[_Options], report: Mapping[str, Any], rules: Mapping[str, Replayed], lab: Beta | None) -> None:
    choices = report["choosing among four (simulated)"]
    run.console.print(_rule_table(rules))
    counts = ", ".join(f"{name}: {n}" for name, n in report["successes in 32"].items())
    run.say(f"{report['candidates']} candidates of the lab by successes in 32: {counts}.")
    run.console.print(_bound_table(lab))
    for name, factors in report["allowed"].items():
        text = ", ".join(f"{factor:.1f}x at {float(share):.0%}" for share, factor in factors.items())
        run.say(f"Fewer rollouts than 32 that the distribution of {name} allows, by recall: {text}.")
    reached = [found for found in rules.values() if found.found >= 0.95]
    best = max((SEEN / found.rollouts for found in reached), default=1.0)
    run.say(f"In the lab, {best:.1f}x fewer at 95 % recall of the candidates with a success.")
    told = report["best of an attempt"]
    for name in ("all 32", "12 or a success"):
        if name in told:
            run.say(
                f"Best candidate of {told['attempts with several']} attempts with several ({name}): "
                f"{told[name]['told']:.3f} by the rollouts that chose it, {told[name]['fresh']:.3f} afresh."
            )
    run.console.print(_choice_table(choices))


def _rule_table(rules: Mapping[str, Replayed]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="Rules on the lab's candidates (a test bed)", box=box.SIMPLE_HEAD)
    for heading in ("up to", "rollouts each", "fewer", "found", "found, rate >= .1"):
        table.add_column(heading, justify="left" if heading == "up to" else "right")
    for name, found in rules.items():
        table.add_row(
            name, f"{found.rollouts:.1f}", f"{SEEN / found.rollouts:.1f}x", f"{found.found:.3f}",
            f"{found.found_above:.3f}",
        )  # fmt: skip
    return table


def _choice_table(choices: Mapping[str, Mapping[str, float]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="One of four candidates, rates as in InT's counts (simulated)", box=box.SIMPLE_HEAD)
    for heading in ("", "rollouts\nper attempt", "with an\nexample", "true\nrate", "rate\nas told"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in choices.items():
        table.add_row(
            name, f"{row['rollouts']:.1f}", f"{row['attempts']:.3f}", f"{row['rate']:.3f}", f"{row['told']:.3f}"
        )
    return table


def _bound_table(lab: Beta | None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="One by one up to a success or n failures, by beta distributions", box=box.SIMPLE_HEAD)
    table.add_column("n", justify="right")
    table.add_column("lost at\nrate .1", justify="right")
    priors = [("InT", INT_PRIOR), *([] if lab is None else [("lab", lab)])]
    for name, _ in priors:
        for heading in (f"{name} fewer", "found", "rate >= .1"):
            table.add_column(heading.replace(" ", "\n", 1) if heading != "found" else heading, justify="right")
    for n in (*GIVE_UP, SEEN):
        cells = [str(n), f"<= {(1 - FLOOR) ** n:.3f}"]
        for _, prior in priors:
            cells += [
                f"{SEEN / prior.cost(n):.1f}x",
                f"{prior.found(n, SEEN):.3f}",
                f"{prior.found_above(FLOOR, n):.3f}",
            ]
        table.add_row(*cells)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
