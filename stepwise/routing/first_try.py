"""A first look at a pair of models of one's own: the weak one alone, routed without a scorer, and a little of the
strong one alone.

The policy is a threshold on how sure the weak model was of the tokens of a step, which costs nothing. It is set on
problems that are left out of the measurement, by the values alone: it escalates a given share of the steps there. The
strong model alone answers a part of the problems, for no more tokens than routing took: a first try is not to buy the
bill that routing is to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepwise.errors import DataError
from stepwise.models.base import Generator
from stepwise.routing.compare import Comparison, Measured, compare, judge
from stepwise.routing.policies import Always, Never
from stepwise.routing.signal_policies import Signalled, Watch, threshold_at
from stepwise.routing.signals import as_signal
from stepwise.types import Problem

if TYPE_CHECKING:
    from stepwise.routing.router import StepRouter

SHARE = 0.3
"""Of the weak model's steps, those that are escalated on the problems where the threshold is set."""
LEAST_PROBLEMS = 8
_MOST_ASIDE = 20
_LEAST_CAP = 1000  # tokens: a few solutions


@dataclass(frozen=True)
class FirstTry:
    """`measured` has the weak model alone and the policy on the same problems; `strong` the strong model alone on the
    first of these, as far as `strong_cap` tokens went (None where that was not one solution). The threshold was set on
    `aside` other problems.

    Example:
        first = first_try(router, problems)
        print(first.policy.threshold, first.measured[1].accuracy, first.strong)
    """

    policy: Signalled
    aside: int
    measured: Comparison
    strong: Measured | None
    strong_cap: int

    def __str__(self) -> str:
        return repr(Comparison([*self.measured, *([self.strong] if self.strong else [])]))


def parts(problems: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """The problems to set the threshold on, a quarter and at most 20, and those to measure on.

    Raises DataError for fewer than 8.

    >>> aside, rest = parts([Problem(str(n), "?") for n in range(40)])
    >>> len(aside), len(rest)
    (10, 30)
    """
    if len(problems) < LEAST_PROBLEMS:
        raise DataError(
            f"there are {len(problems)} problems: without a scorer some are needed to set a threshold on, and others "
            f"to measure on; give {LEAST_PROBLEMS} or more, or a policy (--set routing.policy=never, always, random)"
        )
    count = min(_MOST_ASIDE, len(problems) // 4)
    return list(problems[:count]), list(problems[count:])


def free_signal(knows_entropy: bool) -> str:
    """The signal that told most, of those that cost nothing, in docs/real.md: the mean entropy at the tokens of a step,
    which only a model in this process knows, else the mean log-probability of the tokens drawn.

    >>> free_signal(True), free_signal(False)
    ('entropy', 'mean_logprob')
    """
    return "entropy" if knows_entropy else "mean_logprob"


def first_try(router: StepRouter, problems: Sequence[Problem], *, share: float = SHARE) -> FirstTry:
    """Set the policy and measure it, with the models, caps and the cache of answers of `router`.

    Raises `DataError` for too few problems, and where the weak model tells no log-probabilities.

    Example:
        first = first_try(sw.StepRouter("llamacpp/weak.gguf", "llamacpp/strong.gguf"), sw.load_problems("gsm8k.jsonl"))
        print(first.measured)
    """
    signal = as_signal(free_signal(router.models.weak.capabilities.entropy))
    aside, rest = parts(problems)
    watch = Watch(signal)
    traces = router.with_policy(watch).solve_all(aside, description="setting the threshold")
    values = [value for own in watch.values.values() for value in own]
    if not values:
        reason = traces[0].note or "the weak model wrote no step"
        raise DataError(f"no step of {len(aside)} problems has the signal {signal.name!r}, for example: {reason}")
    policy = Signalled(signal, threshold_at(signal.worse, values, share))
    measured = compare(router, [Never(), policy], rest)
    cap = max(_LEAST_CAP, measured[1].cost.strong_tokens)
    return FirstTry(policy, len(aside), measured, _strong_alone(router, rest, cap), cap)


def _strong_alone(router: StepRouter, problems: Sequence[Problem], cap: int) -> Measured | None:
    """What it does on every third problem, of those that it came to an end of before the cap."""
    arm = router.with_policy(Always())
    own = arm.budget.strong_tokens
    arm.budget = arm.budget.model_copy(update={"strong_tokens": cap if own is None else min(own, cap)})
    for model in arm.models:
        if isinstance(model, Generator):
            model.reset_cache()
    traces = arm.solve_all(problems[: max(1, len(problems) // 3)], description="strong alone")
    done = [trace for trace in traces if trace.finish != "budget" and not any(s.author == "weak" for s in trace.steps)]
    return judge(arm, done) if done else None
