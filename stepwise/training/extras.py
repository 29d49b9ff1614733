"""What credit schemes need besides outcomes (`credit.NEEDS`), and what finding it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepwise import credit
from stepwise.config import Config
from stepwise.errors import ConfigError
from stepwise.training.crediting import Known
from stepwise.training.rollouts import RlRollout
from stepwise.types import Problem

Locate = Callable[[Problem, Sequence[str]], int | None]


@dataclass(frozen=True)
class Cost:
    """Tokens that were generated and evaluated beside the rollouts, by the policy and by others, and the
    floating-point operations that takes: 2 per parameter and token; None where a model does not say its size.
    """

    generated: int = 0
    evaluated: int = 0
    flops: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        unknown = self.flops is None or other.flops is None
        flops = None if unknown else (self.flops or 0.0) + (other.flops or 0.0)
        return Cost(self.generated + other.generated, self.evaluated + other.evaluated, flops)


@dataclass(frozen=True)
class Judges:
    """Who says where rollouts go wrong; what the scheme does not ask is None."""

    scorer: Any = None
    critic: Any = None
    locate: Locate | None = None

    def forget(self) -> None:
        """Empty their caches, so that what they say does not depend on what they were asked before."""


def gather(
    rollouts: Sequence[RlRollout], problems: Mapping[str, Problem], cfg: Config, judges: Judges
) -> tuple[list[Known], Cost]:
    """What `rl.credit.scheme` needs of each rollout."""
    return [Known() for _ in rollouts], Cost()


def load_judges(cfg: Config, scorer: Any, critic: Any, locate: Locate | None) -> Judges:
    """Those that the scheme asks, loaded by the configuration where they are not given."""
    needs = credit.NEEDS[cfg.rl.credit.scheme]
    if "first_error" in needs and cfg.rl.credit.first_error == "given" and locate is None:
        raise ConfigError("no locate")
    return Judges(scorer, critic, locate)
