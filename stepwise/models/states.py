"""What a model that writes a step computes anyway, as one vector: the last layer's states, and how sure it was.

The vector of a step has E numbers for the state at its end, E for the mean of the states over the step, and
`STATISTICS` of the log-probabilities and entropies of its tokens. A state belongs to a token that was run through, so
the last one of a step, which ends it and was drawn only, has none; a step of one token has no vector as it is written.
The same comes from reading a step that somebody else wrote (`read_steps`). Numbers are kept as float16, so that a step
whose vector is taken from a file scores as it did when it was written.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
STATISTICS = (
    "least_logprob", "second_least_logprob", "mean_logprob", "surprising_tokens", "mean_entropy", "largest_entropy",
    "first_logprob", "first_entropy", "log_tokens",
)  # fmt: skip
_LARGEST = 6e4  # float16 ends a little above


def step_vector(states: Any, logprobs: Any, entropies: Any) -> Floats | None:
    """The vector (2 E + S,) of a step from its two states (2, E), and the log-probability and entropy (N,) of each of
    its N tokens; None where there are no states.

    >>> step_vector(np.ones((2, 4)), [-0.5, -2.0, 0.0], [0.5, 1.0, 0.0]).shape
    (17,)
    """
    return None if states is None or not len(logprobs) else _vector(states, logprobs, entropies)


def _vector(states: Any, logprobs: Any, entropies: Any) -> Floats:
    values, spread = np.maximum(np.asarray(logprobs, np.float32), -50), np.asarray(entropies, np.float32)
    least = np.sort(values)[:2]
    statistics = [
        least[0], least[-1], values.mean(), (values < -1).mean(), spread.mean(), spread.max(), values[0], spread[0],
        np.log(len(values)),
    ]  # fmt: skip
    vector = np.concatenate([np.asarray(states, np.float32).ravel(), np.array(statistics, np.float32)])
    kept: Floats = np.clip(vector, -_LARGEST, _LARGEST).astype(np.float16).astype(np.float32)
    return kept


def pack(vector: Floats | None) -> str:
    """A vector as text, two bytes a number; "" for none.

    >>> unpack(pack(np.array([0.5, -2.0], np.float32))).tolist()
    [0.5, -2.0]
    """
    return "" if vector is None else base64.b64encode(vector.astype("<f2").tobytes()).decode()


def unpack(text: str) -> Floats | None:
    """The inverse of `pack`.

    >>> unpack("") is None
    True
    """
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32) if text else None


async def read_steps(engine: Any, ids: Sequence[int], ends: Sequence[int]) -> tuple[list[Floats], int, str]:
    """The vectors of the steps that stand in `ids` between one of `ends` and the next (the first is where the first of
    them begins), read in one pass; how many tokens were evaluated, and why there are no vectors, "" where there are.

    Example:
        vectors, evaluated, error = await read_steps(engine, [*prompt, *first, *second], [20, 31, 45])
    """
    start = ends[0]
    reading = await engine.aread(ids[: ends[-1]], start)
    if reading.error:
        return [], reading.evaluated_tokens, reading.error
    vectors = []
    for a, b in pairwise(ends):
        first = min(a + 1, b - 1)  # of a step of one token, the state that it was drawn from
        states, tokens = reading.states[first - start : b - start], slice(a - start, b - start)
        pair = np.stack([states[-1], states.mean(axis=0)])
        vectors.append(_vector(pair, reading.logprobs[tokens], reading.entropies[tokens]))
    return vectors, reading.evaluated_tokens, ""
