"""What lab-critic finds and repairs: first errors of lab-weak's own attempts, and InT's conditioning table.

Localization: lab-weak's attempts at held-out problems, one each; the critic sees a reference. Beside it what needs no
critic: the scorer (threshold chosen on other problems), the first number that is absent from the reference, the best
constant guess (chosen on other problems), a random guess.

Conditioning (InT, arXiv 2601.14209, the table on what solutions are continued from): on problems that lab-weak fails in
every one of --samples plain rollouts, accuracy and coverage of as many fresh rollouts continued from several places.
The intervention is the critic's own, at the place where the critic located the error. Intervals are 95 %, by
bootstrap over problems. Lab figures. Resumable: finished parts are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepwise.critics import ErrorLocalizer, InterventionProposer
from stepwise.critics.module import run_all
from stepwise.data import localization as loc
from stepwise.data.processbench import ProcessBenchRow
from stepwise.lab.families import CRITIC_WITHHELD
from stepwise.lab.problems import LabProblem, generate
from stepwise.lab.references import Granularity, reference
from stepwise.models import load_backend
from stepwise.models.scorers import load_scorer
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import bootstrap, resamples
from stepwise.types import Intervention, Localization, Problem, Step, Trace

from .conditioning_tables import show
from .lab import right, sample
from .lab_critic import result_of

GRANULARITIES: tuple[Granularity, ...] = ("full", "regrouped", "compressed")
DRAWS = 10_000
Rows = dict[str, Any]


class Attempt(NamedTuple):
    """One of lab-weak's attempts, with the truth."""

    lab: LabProblem
    steps: list[str]
    first_error: int | None

    def problem(self, granularity: Granularity = "full") -> Problem:
        """The problem with a reference of that kind."""
        given = self.lab.problem
        return Problem(
            id=given.id,
            question=given.question,
            answer=given.answer,
            reference=reference(self.lab, granularity),
            source=given.source,
        )

    def example(self) -> ProcessBenchRow:
        """As the functions of `stepwise.data.localization` take it."""
        trace = Trace(self.problem(), tuple(Step(text, "weak") for text in self.steps))
        return ProcessBenchRow(self.problem(), trace, Localization(self.first_error))


class _Options(Options):
    problems: int = 500
    """held-out problems"""
    samples: int = 32
    """rollouts from each place"""
    threads: int = 16
    """calls of the critic at a time"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> int:
    weak = load_backend(run.config.models.weak)
    found: Rows = {row["part"]: row["figures"] for row in run.rows("parts.jsonl")}
    parts: dict[str, Callable[[], Rows]] = {
        "localization": lambda: _localization(run, weak),
        "conditioning": lambda: _conditioning(run, weak),
    }
    for name, measure in parts.items():
        if name not in found:
            found[name] = measure()
            run.write("parts.jsonl", {"part": name, "figures": found[name]})
    run.path("conditioning.json").write_text(json.dumps(found, indent=2) + "\n")
    return 0 if show(run, found) else 1


def _attempts(run: Run[_Options], weak: Any, split: str, seed: int, start: int = 0) -> list[Attempt]:
    problems = generate(split, run.args.problems, start=start)
    solved = sample(weak, problems, seed=seed, label=f"attempts, {split}")
    return [Attempt(p, s[0], p.first_error(s[0])) for p, s in zip(problems, solved, strict=True) if s[0]]


def _by_critic(run: Run[_Options], attempts: Sequence[Attempt], granularity: Granularity = "full") -> list[loc.Outcome]:
    localizer = ErrorLocalizer.from_config(run.config)
    localizer.set_lm(localizer.get_lm().copy(cache=False))
    items = [{"problem": a.problem(granularity), "steps": a.steps} for a in attempts]
    made = run_all(localizer, items, concurrency=run.args.threads, progress=f"locating ({granularity} references)")
    return [loc.Outcome(m.first_error, m.failure or "", len(m.repairs), m.usage) for m in made]


def _counted(outcomes: Sequence[loc.Outcome], attempts: Sequence[Attempt]) -> Rows:
    counts = loc.count(outcomes, [a.example() for a in attempts])
    spread = loc.mean_f1([counts])
    return {
        "f1": counts.f1, "interval": None if spread is None else [spread.low, spread.high], "acc_err": counts.acc_err,
        "acc_cor": counts.acc_cor, "wrong": counts.wrong, "right": counts.right,
        "failed": sum(bool(o.error) for o in outcomes), "repairs": sum(o.repairs for o in outcomes),
        "calls": sum(o.usage.calls for o in outcomes), "tokens": sum(o.usage.generated_tokens for o in outcomes),
    }  # fmt: skip


def _localization(run: Run[_Options], weak: Any) -> Rows:
    attempts, tuning = _attempts(run, weak, "test", seed=31), _attempts(run, weak, "val", seed=32)
    rows: Rows = {}
    for granularity in GRANULARITIES:
        outcomes = _by_critic(run, attempts, granularity)
        rows[f"lab-critic, {granularity}"] = _counted(outcomes, attempts)
        if granularity == "full":
            for name, kept in _strata(attempts).items():
                part = [(o, a) for o, a in zip(outcomes, attempts, strict=True) if kept(a)]
                rows[f"  {name}"] = _counted([o for o, _ in part], [a for _, a in part])
    long = _attempts(run, weak, "test-long", seed=33)
    rows["lab-critic, 9, 10 operations"] = _counted(_by_critic(run, long), long)
    rows |= _baselines(run, attempts, tuning)
    return rows


def _strata(attempts: Sequence[Attempt]) -> dict[str, Callable[[Attempt], bool]]:
    def trap_at_error(a: Attempt) -> str:
        is_operation = a.first_error is not None and a.first_error < len(a.lab.operations)
        return a.lab.operations[a.first_error].family if is_operation and a.first_error is not None else ""

    return {
        "no withheld trap": lambda a: not set(a.lab.traps) & set(CRITIC_WITHHELD),
        "with a withheld trap": lambda a: bool(set(a.lab.traps) & set(CRITIC_WITHHELD)),
        "first error in one, or right": lambda a: a.first_error is None or trap_at_error(a) in CRITIC_WITHHELD,
    }


def _baselines(run: Run[_Options], attempts: Sequence[Attempt], tuning: Sequence[Attempt]) -> Rows:
    def scored(rows: Sequence[Attempt]) -> list[list[float]]:
        pairs = [(a.lab.problem, a.steps) for a in rows]
        return [list(s) for s in load_scorer(run.config.scorer).score_batch(pairs)]

    tuned = [a.example() for a in tuning]
    threshold = loc.best_threshold(scored(tuning), tuned)
    by_score = [loc.Outcome(loc.first_below(scores, threshold)) for scores in scored(attempts)]
    examples = [a.example() for a in attempts]
    prior = loc.position_prior(tuned)
    guess = prior.index(max(prior))
    return {
        f"scorer, below {threshold:.2f}": _counted(by_score, attempts),
        "number not in the reference": _counted([loc.absent_number(e) for e in examples], attempts),
        f"always step {guess}": _counted([loc.Outcome(min(guess, len(e.trace.steps) - 1)) for e in examples], attempts),
        "random": _counted([loc.random_guess(0)(e) for e in examples], attempts),
    }


def _hard(run: Run[_Options], weak: Any) -> list[Attempt]:
    """A failed attempt at each problem that lab-weak fails every time, where a true step exists at the first error."""
    problems = generate("test", run.args.problems)
    everything = sample(weak, problems, n=run.args.samples, seed=11, label=f"{run.args.samples} rollouts each")
    out = []
    for p, samples in zip(problems, everything, strict=True):
        first = p.first_error(samples[0])
        failed = not any(right(p, s) for s in samples)
        if failed and first is not None and first < len(p.operations) and p.true_step(samples[0][:first]) is not None:
            out.append(Attempt(p, samples[0], first))
    return out


def _proposed(run: Run[_Options], hard: Sequence[Attempt], at: Sequence[int | None]) -> list[Intervention | None]:
    proposer = InterventionProposer.from_config(run.config)
    proposer.set_lm(proposer.get_lm().copy(cache=False))
    asked = [(i, a, e) for i, (a, e) in enumerate(zip(hard, at, strict=True)) if e is not None]
    items = [{"problem": a.problem(), "steps": a.steps, "first_error": e} for _, a, e in asked]
    made = run_all(proposer, items, concurrency=run.args.threads, progress="proposing")
    out: list[Intervention | None] = [None] * len(hard)
    for (index, _, _), proposal in zip(asked, made, strict=True):
        out[index] = proposal.intervention
    return out


def _conditioning(run: Run[_Options], weak: Any) -> Rows:
    hard = _hard(run, weak)
    errors = [a.first_error or 0 for a in hard]
    located = [o.first_error for o in _by_critic(run, hard)]
    own, given = _proposed(run, hard, located), _proposed(run, hard, list(errors))
    prefixes = [a.steps[:e] for a, e in zip(hard, errors, strict=True)]
    problems = [a.lab for a in hard]
    again = sample(weak, problems, seed=41, prefixes=prefixes, label="the step, resampled once")
    places: dict[str, list[list[str]]] = {
        "problem only": [[] for _ in hard],
        "+ correct prefix": prefixes,
        "+ prefix, original wrong step": [a.steps[: e + 1] for a, e in zip(hard, errors, strict=True)],
        "+ prefix, resampled step": [s[0][: e + 1] for s, e in zip(again, errors, strict=True)],
        "+ prefix, intervention": [_applied(a, i) for a, i in zip(hard, own, strict=True)],
        "  told the true location": [_applied(a, i) for a, i in zip(hard, given, strict=True)],
        "+ prefix, true step": [[*p, lab.true_step(p) or ""] for p, lab in zip(prefixes, problems, strict=True)],
    }
    solved = {
        name: np.array([[right(p, s) for s in found] for p, found in zip(problems, made, strict=True)])
        for name, begins in places.items()
        for made in [sample(weak, problems, n=run.args.samples, seed=42, prefixes=begins, label=name.strip())]
    }
    shares = {name: table.mean(1) for name, table in solved.items()}
    rows = {name: _spread(shares[name], np.asarray(solved[name].any(1))) for name in solved}
    names = list(places)
    return {
        "problems": run.args.problems, "hard": len(hard), "samples": run.args.samples, "rows": rows,
        "ratio_to_prefix": _ratio(shares[names[4]], shares[names[1]]),
        "share_of_ceiling": _ratio(shares[names[4]], shares[names[6]]),
        "located": sum(found == true for found, true in zip(located, errors, strict=True)),
        "right_result": sum(i is not None and result_of(i.content) == result_of(p.true_step(s) or "")
                            for i, p, s in zip(given, problems, prefixes, strict=True)),
        "sound": sum(i is not None and p.check([*s, i.content])[-1]
                     for i, p, s in zip(given, problems, prefixes, strict=True)),
    }  # fmt: skip


def _applied(attempt: Attempt, intervention: Intervention | None) -> list[str]:
    """Steps with the intervention in place; the attempt as it is where none was proposed (it stays wrong)."""
    if intervention is None:
        return attempt.steps[: (attempt.first_error or 0) + 1]
    return [*attempt.steps[: intervention.location], intervention.content]


def _spread(shares: np.ndarray, covered: np.ndarray) -> Rows:
    found = bootstrap(lambda rows: float(shares[rows].mean()), len(shares), samples=DRAWS)
    assert found is not None
    return {
        "accuracy": found.value, "interval": [found.low, found.high], "covered": int(covered.sum()), "of": len(covered),
    }  # fmt: skip


def _ratio(above: np.ndarray, below: np.ndarray) -> Rows:
    """Ratio of two accuracies on the same problems; None where the lower one is 0 and the ratio has no bound."""
    pairs = [(above[rows].mean(), below[rows].mean()) for rows in resamples(len(above), DRAWS)]
    whole, *ratios = (a / b if b else (math.inf if a else 0.0) for a, b in pairs)
    low, high = np.quantile(ratios, [0.025, 0.975], method="lower")
    return {
        name: float(x) if math.isfinite(x) else None for name, x in (("ratio", whole), ("low", low), ("high", high))
    }


if __name__ == "__main__":
    raise SystemExit(main())
