"""Credit schemes and rewards of one's own: a base class each, found by import path, and checked in what they return.

rl.credit = "my_package.my_file:MyCredit"     # in [rl], or --set rl.credit=my_package.my_file:MyCredit
rl.reward = "my_package.my_file:MyReward"     # or a function of (problem, solution, verdict)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from stepwise.credit.group import SOURCES, Array, Group
from stepwise.errors import PluginError, reason_of
from stepwise.grading import Verdict
from stepwise.plugins import Plugin, check_plugin, load_plugin, make_plugin
from stepwise.types import Problem

RewardFunction = Callable[[Problem, str, Verdict], float | None]
_IN_REWARDS = "return a float from 0 (wrong) to 1 (right), or None for a rollout that is not to count"


class Credit(Plugin):
    """A credit scheme: what each token of a group of rollouts of one problem is credited with.

    `needs` is the one field of `Group` that the scheme reads besides outcomes ("first_error", "scores", "values",
    "critiques", "evidence" or "teacher"); "" asks for none, and nobody is asked.

    Example:
        >>> class FirstToken(Credit):
        ...     def advantages(self, group, seed):
        ...         credit = np.zeros(group.mask.shape)
        ...         credit[:, 0] = np.nan_to_num(group.rewards - np.nanmean(group.rewards))
        ...         return credit
        >>> group = Group([1.0, 0.0], np.ones((2, 2), dtype=bool), (((0, 2),), ((0, 2),)))
        >>> FirstToken().checked(group, seed=0).tolist()
        [[0.5, 0.0], [-0.5, 0.0]]
    """

    needs: ClassVar[str] = ""
    _choices = MappingProxyType({"needs": ("", *SOURCES)})

    @abstractmethod
    def advantages(self, group: Group, seed: int) -> Array:
        """Advantages (B, T) of the tokens of `group`; those of padding and of forced tokens are set to 0.

        `seed` >= 0 follows from the run's seed, the problem and the step; it is for schemes that draw.
        """

    def checked(self, group: Group, seed: int) -> Array:
        """The scheme's advantages (B, T), 0 where the policy sampled nothing; PluginError, naming class, method and
        remedy, where it raises or returns anything but finite numbers of that shape.
        """
        where = f"{type(self).__name__}.advantages"
        values = _called(where, self.advantages, group, seed)
        try:
            advantages = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            shape = group.mask.shape
            raise PluginError(f"{where} returned {values!r:.80}; return an array of {shape} numbers") from None
        if advantages.shape != group.mask.shape:
            raise PluginError(
                f"{where} returned an array of shape {advantages.shape} for {group.mask.shape[0]} rollouts of at most "
                f"{group.mask.shape[1]} tokens; return one of shape group.mask.shape"
            )
        for i, t in np.argwhere(group.mask & ~np.isfinite(advantages)):
            raise PluginError(
                f"{where} returned {advantages[i, t]} at rollout {i}, token {t}; return finite numbers (a rollout "
                "without a reward has nan in group.rewards: leave it out with group.rewarded)"
            )
        return np.where(group.mask, advantages, 0.0)


class Reward(Plugin):
    """What a rollout earns, in place of 1 for a right answer and 0 for a wrong one.

    Example:
        >>> class Short(Reward):
        ...     def reward(self, problem, solution, verdict):
        ...         return 1.0 - min(len(solution), 2000) / 4000 if verdict is Verdict.CORRECT else 0.0
        >>> Short().checked(Problem("p", "1 + 1?", "2"), "x" * 1000, Verdict.CORRECT)
        0.75
    """

    @abstractmethod
    def reward(self, problem: Problem, solution: str, verdict: Verdict) -> float | None:
        """What the text `solution` earns, from 0 to 1, where the grader says `verdict`; None leaves it out."""

    def checked(self, problem: Problem, solution: str, verdict: Verdict) -> float | None:
        """What it pays; PluginError, naming class, method and remedy, where it raises or returns no such number."""
        where = self._where()
        value = _called(f"{where} (problem {problem.id!r})", self.reward, problem, solution, verdict)
        if value is None:
            return None
        if type(value) not in (float, int, bool):
            raise PluginError(f"{where} returned {value!r:.80}, a {type(value).__name__}; {_IN_REWARDS}")
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise PluginError(f"{where} returned {value} for problem {problem.id!r}; {_IN_REWARDS}")
        return float(value)

    def _where(self) -> str:
        return f"{type(self).__name__}.reward"


class _FunctionReward(Reward):
    """A function of (problem, solution, verdict) as a reward."""

    def __init__(self, function: RewardFunction) -> None:
        self.function = function

    def _where(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))

    def reward(self, problem: Problem, solution: str, verdict: Verdict) -> float | None:
        return self.function(problem, solution, verdict)


def as_credit(value: Any, field: str = "credit") -> Credit:
    """A scheme from an import path, a class or an object; ConfigError, beginning with `field`, for what is none.

    Example:
        >>> class Nothing(Credit):
        ...     def advantages(self, group, seed):
        ...         return np.zeros(group.mask.shape)
        >>> as_credit(Nothing).name
        'Nothing'
    """
    if isinstance(value, str):
        field, value = f'{field} is "{value}"', load_plugin(value, Credit, field=field)
    check_plugin(value, Credit, field=field)
    scheme: Credit = make_plugin(value, {}, field=field)
    check_plugin(scheme, Credit, field=field)  # what a class says it needs is looked at in an object of it
    return scheme


def as_reward(value: Any, field: str = "reward") -> Reward:
    """A reward from an import path, a class, an object or a function; ConfigError, beginning with `field`, else.

    Example:
        >>> reward = as_reward(lambda problem, solution, verdict: float("therefore" in solution))
        >>> reward.checked(Problem("p", "1 + 1?", "2"), "therefore 2", Verdict.WRONG)
        1.0
    """
    if isinstance(value, str):
        field, value = f'{field} is "{value}"', load_plugin(value, object, field=field)
    if callable(value) and not isinstance(value, type | Reward):
        return _FunctionReward(value)
    check_plugin(value, Reward, field=field)
    reward: Reward = make_plugin(value, {}, field=field)
    return reward


def _called(where: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as error:  # whatever a user's code can raise
        raise PluginError(f"{where} raised {type(error).__name__}: {reason_of(error)}; correct it there") from error
