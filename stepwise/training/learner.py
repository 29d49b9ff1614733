"""All that a step of reinforcement learning works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwise.config import Config
from stepwise.training.hints import Hints
from stepwise.training.judges import Judges
from stepwise.training.lora import Trainee
from stepwise.training.policy import PolicyRow
from stepwise.training.rollouts import RlRollout
from stepwise.training.sampler import Sampler
from stepwise.types import Problem


@dataclass
class Learner:
    """Models, optimizer, problems and prompts (by problem id, in the order given) of a run; a prompt ends with the
    problem's hint where `hints` has one.

    `failed` is where a batch goes whose loss is not finite. `mark` is LaSeR's token, None where LaSeR is off;
    `constant` its mean log-probability under the base, None until the first step has measured it.
    """

    cfg: Config
    trainee: Trainee
    optimizer: Any
    sampler: Sampler
    judges: Judges
    problems: Mapping[str, Problem]
    prompts: Mapping[str, tuple[int, ...]]
    failed: Path
    hints: Hints = field(default_factory=dict)
    mark: int | None = None
    constant: float | None = None

    def row(
        self,
        rollout: RlRollout,
        advantages: NDArray[np.float64] | None = None,
        weight: float = 0.0,
        class_weight: float = 0.0,
        prompt: Sequence[int] | None = None,
    ) -> PolicyRow:
        """A rollout as the trainer takes it, under its problem's prompt or another; without advantages for a pass
        without gradients.
        """
        return PolicyRow(
            tuple(self.prompts[rollout.problem] if prompt is None else prompt),
            rollout.token_ids,
            np.array(rollout.logprobs),
            np.zeros(len(rollout.token_ids)) if advantages is None else advantages,
            weight,
            rollout.reward or 0.0,
            class_weight,
        )
