"""A fit of TRIM's routing POMDP as a value: parameters, and a card that says for which models and how sure they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.errors import ConfigError, DataError
from stepwise.io import write_text
from stepwise.routing.belief import ObservationLaw
from stepwise.routing.pomdp import RoutingPomdp
from stepwise.stats import Interval

if TYPE_CHECKING:
    from stepwise.routing.difficulty import DifficultyPomdp

_FROZEN = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_FROZEN)
class CalibrationBin:
    """Of `n` drafts whose belief in "wrong just now" was about `predicted`, the share that were, with its interval."""

    predicted: float
    share: Interval
    n: int


@dataclass(frozen=True, config=_FROZEN)
class HeldOut:
    """The filter on problems that it was not fitted on.

    Attributes:
        steps: labelled drafts it was asked about.
        log_likelihood: mean log of its belief in the state that was true, nats per draft.
        without_scores: the same for the prior of each step, which looks at no score.
        auroc: of the belief in "wrong just now" for it, among all drafts.
        calibration: from low to high beliefs in "wrong just now".
    """

    steps: int
    log_likelihood: float
    without_scores: float
    auroc: float
    calibration: tuple[CalibrationBin, ...]


@dataclass(frozen=True, config=_FROZEN)
class Difficulty:
    """Classes of problems, each with its share and its chance of a right draft, against one class for all.

    `gain` is the held-out log-likelihood of the labels over that of one class, nats per problem, with an interval.
    """

    classes: tuple[tuple[float, float], ...]
    gain: Interval


@dataclass(frozen=True, config=_FROZEN)
class FitCard:
    """What a fit is good for and how sure it is.

    Attributes:
        weak, strong, scorer: names of the models it was fitted for; `config`: hash of their configuration.
        labels: where labels came from: "lab", "column", or "none" (answers and scores, by EM).
        drafts: labelled drafts by state; `strong_steps` those of the strong model after right steps.
        p_strong_given: whether p_strong was handed in.
        intervals: 95 % bootstrap over problems: p_weak, p_strong, steps, tokens_per_step, auroc (wrong just now against
            right, of the score alone).
        lag_correlation: of neighbouring scores in the state "right"; the model takes it for 0.
        held_out: of the filter with `law`; `held_out_pair`: of the memoryless belief with `pair_law`.
        power: that the likelihood ratios of the law were raised to; below 1 where scores of a trace repeat one another.
    """

    weak: str
    strong: str
    scorer: str
    config: str
    labels: str
    problems: int
    traces: int
    drafts: tuple[int, int, int]
    strong_steps: int
    p_strong_given: bool
    intervals: dict[str, Interval]
    lag_correlation: float | None
    power: float = 1.0
    held_out: HeldOut | None = None
    held_out_pair: HeldOut | None = None
    difficulty: Difficulty | None = None

    def check(self, *, weak: str, strong: str, scorer: str) -> None:
        """Raise `ConfigError` unless these are the names of the models it was fitted for."""
        for role, name in (("weak", weak), ("strong", strong), ("scorer", scorer)):
            if name != getattr(self, role):
                raise ConfigError(
                    f"the fit is for the {role} model {getattr(self, role)!r}, the router has {name!r}; "
                    "fit again for these models (python -m programs.fit_router)"
                )


@dataclass(frozen=True, config=_FROZEN)
class RouterFit:
    """Parameters of the routing POMDP with the card of their fit. Plain JSON by `save` and `load`.

    `hazard[k]` = P(a solution has k steps | at least k), its last entry 1; `law`: of the current score, for a filter;
    `pair_law`: of (least earlier score, score), for a memoryless belief, None where labels were too few.
    """

    p_weak: float
    p_strong: tuple[float, ...]
    hazard: tuple[float, ...]
    law: ObservationLaw
    tokens_per_step: float
    card: FitCard
    pair_law: ObservationLaw | None = None

    def __post_init__(self) -> None:
        self.pomdp()  # its checks are ours

    def pomdp(self, reward: float = 100.0) -> RoutingPomdp:
        """The model to solve, its observation the bin of the current score."""
        return RoutingPomdp(self.p_weak, self.p_strong, self.hazard, self.law.rows, self.tokens_per_step, reward)

    def difficulty_pomdp(self) -> DifficultyPomdp:
        """The same with classes of problems, for the generic solver; p_strong is taken as equal in all.

        Raises `DataError` where no classes were fitted (`fit_router(difficulty=2)`).
        """
        from stepwise.routing.difficulty import DifficultyPomdp

        if self.card.difficulty is None:
            raise DataError("the fit has no classes of problems; fit with difficulty=2 or more")
        shares, chances = zip(*self.card.difficulty.classes, strict=True)
        total = sum(shares)
        each = tuple((q,) * len(shares) for q in self.p_strong)
        return DifficultyPomdp(self.pomdp(), tuple(share / total for share in shares), chances, each)

    def save(self, path: str | Path) -> None:
        """Write one JSON object."""
        from stepwise.types import to_json

        write_text(path, to_json(self) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> RouterFit:
        """The inverse of `save`; raises `DataError` for a file that is missing or holds no fit."""
        from stepwise.types import from_json

        try:
            return from_json(cls, Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; make one with python -m programs.fit_router") from None
        except ValueError as error:
            reason = " ".join(str(error).split("\n")[:3])
            raise DataError(f"{path} holds no fit ({reason}); make one with python -m programs.fit_router") from None
