"""A text that is given, read for its log-probabilities, entropies and states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stepwise.models.engine.jobs import Scoring
from stepwise.models.engine.sampling import statistics_of
from stepwise.models.engine.stopping import Ending


@dataclass(frozen=True)
class Reading:
    """What a model makes of a text that is given, of `Engine.aread`: for each of N tokens from `start` on its
    log-probability, the entropy at its place (N,) and the last layer's state at the token before it (N, E).

    Example:
        >>> Reading(np.zeros(3), np.zeros(3), np.zeros((3, 8))).error
        ''
    """

    logprobs: npt.NDArray[np.float32]
    entropies: npt.NDArray[np.float32]
    states: npt.NDArray[np.float32]
    evaluated_tokens: int = 0
    error: str = ""


@dataclass(slots=True, eq=False)
class TextReading(Scoring):
    """A sequence that is read from the position `wanted[0]` on; `token_ids` (P,) are those behind each position.

    Example:
        TextReading(Call(1), 0, Prompt([5, 6], 1), range(0, 2), np.array([6, 7]))  # of 5, 6, 7 the last two
    """

    @property
    def gives_states(self) -> bool:
        """From there on; what stands before is read as any prompt."""
        return self.at >= self.wanted[0]

    def take(self, logits: npt.NDArray[np.float32], states: npt.NDArray[np.float32] | None) -> None:
        """See `Scoring`."""
        if states is None:  # on its way to the first position
            return
        first = len(self.rows)
        pairs = zip(*statistics_of(logits, self.token_ids[first : first + len(logits)]), strict=True)
        self.rows += [(*pair, state) for pair, state in zip(pairs, states.copy(), strict=True)]

    def result(self, ending: Ending | None, error: str = "") -> Reading:
        """See `Unit`."""
        rows = [] if error else self.rows
        logprobs, entropies, states = (np.array([row[i] for row in rows], np.float32) for i in range(3))
        return Reading(logprobs, entropies, states, self.evaluated, error)
