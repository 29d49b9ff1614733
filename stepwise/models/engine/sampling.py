"""Drawing tokens from rows of logits, all rows of a batch at once.

The order is temperature, then top-k, then top-p (as in transformers; llama.cpp applies temperature last). Each draw is
the inverse of the cumulative distribution at one uniform number, and that number is a hash of (seed, sample, position):
what else is in the batch changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Doubles = npt.NDArray[np.float64]
_Words = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_AHEAD = 32
"""Random numbers are hashed for this many draws at once."""
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


def _mix(x: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that looks random."""
    x = (x ^ (x >> _30)) * _MIX[0]
    x = (x ^ (x >> _27)) * _MIX[1]
    return x ^ (x >> _31)


def stream_key(seed: int, sample: int) -> int:
    """The 64-bit key of the random numbers of one sample, from its seed and index alone.

    >>> stream_key(0, 0) == stream_key(0, 0) != stream_key(0, 1)
    True
    """
    with np.errstate(over="ignore"):
        seeded = _mix(np.array([seed % 2**64], np.uint64) + _GOLDEN)
        return int(_mix(seeded + _GOLDEN * np.uint64(sample + 1))[0])


def _uniforms(keys: _Words, positions: _Words) -> _Doubles:
    """Numbers in [0, 1) from the keys and the positions in their streams, broadcast."""
    return (_mix(keys + _GOLDEN * positions) >> _11).astype(np.float64) * 2.0**-53


class Draws:
    """The next token of each of a fixed list of B rows, which have random numbers of their own.

    `settings` (B,): temperature (0 is greedy), top_k (0: off) and top_p (1: off) of a row; `keys` (B,) from
    `stream_key`; `drawn` (B,): how many tokens a row has drawn already. What does not change from one batch to the next
    is worked out here once.

    >>> draws = Draws([(0.0, 0, 1.0)], [stream_key(1, 0)], [0])  # one greedy row
    >>> draws(np.array([[0.0, 2.0, 1.0]], np.float32))[0]
    [1]
    """

    def __init__(self, settings: Sequence[tuple[float, int, float]], keys: Sequence[int], drawn: Sequence[int]):
        self._settings = settings
        heat = np.array([temperature for temperature, _, _ in settings], np.float32)
        self._greedy = np.flatnonzero(heat == 0).tolist()
        self._scale = None if (heat == 1).all() else (1 / np.where(heat == 0, np.float32(1), heat))[:, None]  # (B, 1)
        self._truncated = [i for i, (t, k, p) in enumerate(settings) if t > 0 and (k > 0 or p < 1)]
        self._keys = np.array(keys, np.uint64)[:, None]
        self._drawn = np.array(drawn, np.uint64)[:, None]
        self._rows = np.arange(len(heat))
        self._numbers: list[_Doubles] = []  # (B,) for each of the draws to come, the next one last
        self._again: list[_Doubles] = []

    def __call__(self, logits: _Floats) -> tuple[list[int], list[float], list[float]]:
        """The next token of every row of `logits` (B, V), its log-probability under the plain distribution, and the
        entropy of that distribution, in nats.

        `logits` are left as they are. A row of NaN gives token 0.
        """
        if not self._numbers:  # two numbers for each of the next draws: the second is for `again`
            steps = np.uint64(2) * (self._drawn + np.arange(_AHEAD).astype(np.uint64))
            self._numbers = list(_uniforms(self._keys, steps).T[::-1])
            self._again = list(_uniforms(self._keys, steps + np.uint64(1)).T[::-1])
            self._drawn = self._drawn + np.uint64(_AHEAD)
        numbers, self._used = self._numbers.pop(), self._again.pop()
        shifted = logits - logits.max(axis=1, keepdims=True)
        weights = np.exp(shifted)
        totals = weights.sum(axis=1)  # (B,), before temperature and truncation
        log_total = np.log(totals)
        means = np.einsum("bv,bv->b", weights, shifted)  # 2 to 4 % of what a draw takes
        if np.isnan(means).any():  # a token that is impossible: 0 times minus infinity
            means = np.einsum("bv,bv->b", weights, np.where(weights > 0, shifted, 0))
        entropies: list[float] = (log_total - means / totals).tolist()
        if self._scale is not None:
            weights = np.exp(shifted * self._scale)
        for row in self._truncated:
            _truncate(weights[row], *self._settings[row][1:])
        tokens = _invert(weights, numbers)
        for row in self._greedy:
            tokens[row] = int(logits[row].argmax())
        logprobs: list[float] = (shifted[self._rows, tokens] - log_total).tolist()
        return tokens, logprobs, entropies

    def again(self, row: int, logits: _Floats, allowed: _Floats) -> tuple[int, float]:
        """Another draw for one row, from `allowed` (V,); its log-probability is the one under `logits` (V,)."""
        temperature, top_k, top_p = self._settings[row]
        if temperature == 0:
            token = int(allowed.argmax())
        else:
            weights = np.exp((allowed - allowed.max()) / np.float32(temperature))[None]
            _truncate(weights[0], top_k, top_p)
            token = _invert(weights, self._used[row : row + 1])[0]
        shifted = logits - logits.max()
        return token, float(shifted[token] - np.log(np.exp(shifted).sum()))


def statistics_of(logits: _Floats, tokens: npt.NDArray[np.int64]) -> tuple[_Floats, _Floats]:
    """The log-probability of one token for each row of `logits` (R, V), and the entropy of the row, in nats.

    >>> logprobs, entropies = statistics_of(np.zeros((1, 4), np.float32), np.array([2]))
    >>> round(float(logprobs[0]), 4), round(float(entropies[0]), 4)
    (-1.3863, 1.3863)
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    totals = weights.sum(axis=1)
    means = np.einsum("rv,rv->r", weights, np.where(weights > 0, shifted, 0)) / totals
    return shifted[np.arange(len(tokens)), tokens] - np.log(totals), np.log(totals) - means


def ranked(logits: _Floats, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens of a row of logits (V,) with their log-probabilities, likeliest first.

    >>> [token for token, _ in ranked(np.array([0.0, 2.0, 1.0], np.float32), 2)]
    [1, 2]
    """
    shifted = logits - logits.max()
    count = min(count, len(logits))
    top = np.argpartition(-shifted, count - 1)[:count]
    top = top[np.argsort(-shifted[top], kind="stable")]
    log_total = np.log(np.exp(shifted).sum())
    return tuple(zip(top.tolist(), (shifted[top] - log_total).tolist(), strict=True))


def _invert(weights: _Floats, u: _Doubles) -> list[int]:
    """For each row of unnormalised weights (B, V), where their running sum passes the share `u` (B,) of the total."""
    cumulative = weights.astype(np.float64)  # a sum in single precision would lose the tail of a large vocabulary
    np.cumsum(cumulative, axis=1, out=cumulative)
    targets = u * cumulative[:, -1]
    last = weights.shape[1] - 1
    # side="right": the first index whose sum exceeds the target, so one of weight zero is never chosen.
    return [min(int(row.searchsorted(t, "right")), last) for row, t in zip(cumulative, targets, strict=True)]


def _truncate(weights: _Floats, top_k: int, top_p: float) -> None:
    """Set to zero what lies outside the `top_k` largest, then outside the smallest set that holds `top_p` of the rest;
    in place.
    """
    if 0 < top_k < len(weights):
        num_cut = len(weights) - top_k
        weights[np.argpartition(weights, num_cut)[:num_cut]] = 0
    if top_p < 1:
        total = float(weights.sum(dtype=np.float64))
        # All tokens below this weight together hold less than 1 - top_p, so only the others need sorting.
        candidates = np.flatnonzero(weights * np.float32(len(weights)) > total * (1 - top_p))
        order = candidates[np.argsort(-weights[candidates], kind="stable")]
        chosen = order[: np.searchsorted(weights[order].cumsum(dtype=np.float64), top_p * total) + 1]
        values = weights[chosen]
        weights[:] = 0
        weights[chosen] = values
