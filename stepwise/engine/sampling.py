"""Drawing tokens from rows of logits, all rows of a batch at once.

The order is temperature, then top-k, then top-p (as in transformers; llama.cpp applies temperature last). Each draw
is the inverse of
the cumulative distribution at one uniform number, and that number is a hash of (seed, sample, position): what else is
in
the batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from stepwise.engine.jobs import Unit

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


def _mix(x: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that looks random."""
    x = (x ^ (x >> _30)) * _MIX[0]
    x = (x ^ (x >> _27)) * _MIX[1]
    return x ^ (x >> _31)


def stream_key(seed: int, sample: int) -> int:
    """The 64-bit key of the random numbers of one sample, from its seed and index alone."""
    with np.errstate(over="ignore"):
        seeded = _mix(np.array([seed % 2**64], np.uint64) + _GOLDEN)
        return int(_mix(seeded + _GOLDEN * np.uint64(sample + 1))[0])


def uniforms(keys: Words, positions: Words) -> Doubles:
    """One number in [0, 1) per row, from the row's key and the position in its sequence of draws; both (B,)."""
    return (_mix(keys + _GOLDEN * positions) >> _11).astype(np.float64) * 2.0**-53


def sample(logits: Floats, temperature: Floats, top_k: Ints, top_p: Floats, u: Doubles) -> tuple[Ints, Doubles]:
    """Tokens (B,) and their log-probabilities (B,) under the untempered, untruncated distribution.

    logits (B, V) are left as they are; temperature (B,) 0 is greedy; top_k (B,) 0 and top_p (B,) 1 switch truncation
    off; u (B,) in [0, 1).
    A row of NaN gives token 0 with log-probability NaN.
    """
    best = logits.argmax(axis=1)
    rows = np.arange(len(logits))
    shifted = logits - logits[rows, best, None]
    weights = np.exp(shifted)
    log_total = np.log(weights.sum(axis=1, dtype=np.float64))
    tokens = best
    drawn = temperature > 0
    if drawn.any():
        if not (drawn & (temperature == 1)).all():
            weights = np.exp(shifted / np.where(drawn, temperature, 1)[:, None])
        truncated = np.flatnonzero(drawn & ((top_k > 0) | (top_p < 1)))
        for row in truncated:
            _truncate(weights[row], int(top_k[row]), float(top_p[row]))
        cumulative = weights.cumsum(axis=1, dtype=np.float64)
        target = u * cumulative[:, -1]
        # side="right": the first index whose cumulative weight exceeds the target, so one of weight zero is never chosen.
        picked = [np.searchsorted(row, t, side="right") for row, t in zip(cumulative, target, strict=True)]
        tokens = np.where(drawn, np.minimum(picked, logits.shape[1] - 1), best)
    return tokens, shifted[rows, tokens] - log_total


def _truncate(weights: Floats, top_k: int, top_p: float) -> None:
    """Set to zero what lies outside the `top_k` largest, then outside the smallest set that holds `top_p` of
    the rest; in place.
    """
    if 0 < top_k < len(weights):
        cut = np.argpartition(weights, len(weights) - top_k)[: len(weights) - top_k]
        weights[cut] = 0
    if top_p < 1:
        total = float(weights.sum(dtype=np.float64))
        # All tokens below this weight together hold less than 1 - top_p, so only the others need sorting.
        kept = np.flatnonzero(weights * np.float32(len(weights)) > total * (1 - top_p))
        order = kept[np.argsort(-weights[kept], kind="stable")]
        inside = np.searchsorted(weights[order].cumsum(dtype=np.float64), top_p * total) + 1
        chosen = order[:inside]
        values = weights[chosen]
        weights[:] = 0
        weights[chosen] = values


class Draws:
    """Sampling settings of a fixed list of units as arrays, so that a turn in which nobody comes or goes
    builds none.
    """

    def __init__(self, units: Sequence[Unit]):
        jobs = [unit.job for unit in units if unit.job is not None]
        self.temperature = np.array([job.temperature for job in jobs], np.float32)
        self.top_k = np.array([job.top_k for job in jobs], np.int64)
        self.top_p = np.array([job.top_p for job in jobs], np.float32)
        self.keys = np.array([unit.key for unit in units], np.uint64)
        self.positions = np.array([2 * len(unit.out) for unit in units], np.uint64)
        self.constrained = [i for i, unit in enumerate(units) if unit.constraint is not None]

    def first(self, logits: Floats) -> tuple[list[int], list[float]]:
        """A token for each unit from its row of `logits`, and their log-probabilities."""
        u = uniforms(self.keys, self.positions)
        tokens, logprobs = sample(logits, self.temperature, self.top_k, self.top_p, u)
        return tokens.tolist(), logprobs.tolist()

    def again(self, i: int, allowed: Floats, logits: Floats) -> tuple[int, float]:
        """Another draw for unit `i`, from `allowed` (1, V) and the second number of its position; log-probability
        under `logits`.
        """
        one = slice(i, i + 1)
        u = uniforms(self.keys[one], self.positions[one] + np.uint64(1))
        tokens, _ = sample(allowed, self.temperature[one], self.top_k[one], self.top_p[one], u)
        token, top = int(tokens[0]), float(logits.max())
        return token, float(logits[token]) - top - float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
