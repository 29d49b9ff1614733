"""A linear head on the states of the weak model: from the vectors of a solution's steps to P(step is right).

A step is described by its vector (`stepwise.models.states`), by how its statistics differ from their mean over the
steps before it, and by its place. The head is a logistic regression with a ridge, on the leading principal components
of the states and on the rest as it is; being linear throughout, it is kept as one weight for each number of the
description. How many components and how much ridge follows from the likelihood of validation problems, and a line on
the logit (`calibration.Calibration`), fitted on those too, makes its outputs probabilities.

Its directory has `head.safetensors` and `card.json`; numpy alone reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stepwise.errors import DataError, ScorerError, StepwiseError
from stepwise.io import read_json, write_text
from stepwise.models.safetensors import Checkpoint, write_safetensors
from stepwise.models.scorers.calibration import Calibration, logistic, sigmoid
from stepwise.models.states import STATISTICS, Floats
from stepwise.records import from_json, record, to_json

CARD, WEIGHTS = "card.json", "head.safetensors"
COMPONENTS = (8, 32, 128, 256)
RIDGES = (0.1, 1.0, 10.0, 100.0, 1000.0)
_S = len(STATISTICS)
_PLACES = 3  # numbers that describe the place of a step
_FORM = 1  # of a description; a head of another form is refused


@record(allow_inf_nan=False)
class HeadCard:
    """What a head was fitted for and on. `model` is the weak model's name (weights and adapter by their digests),
    `prompt` the hash of its prompt, `width` that of its states; `components` and `ridge` were chosen, `threshold` is
    the one with the best F1 on validation problems. `facts` says what it was measured to do.

    >>> HeadCard("m@12345678", "0123456789ab", 64).calibration(0.5)
    0.5
    """

    model: str
    prompt: str
    width: int
    splitter: str = "paragraphs"
    components: int = 0
    ridge: float = 0.0
    calibration: Calibration = Calibration()
    threshold: float = 0.5
    facts: dict[str, Any] = Field(default_factory=dict)
    form: int = _FORM


class Head(NamedTuple):
    """A fitted head: `weight` (F,) on a description, `bias`, and its card.

    >>> card = HeadCard("m@12345678", "0123456789ab", width=4)
    >>> Head(np.zeros(29, np.float32), 0.0, card).scores([np.ones(17, np.float32)])
    [0.5]
    """

    weight: NDArray[np.float32]
    bias: float
    card: HeadCard

    def raw(self, vectors: Sequence[Floats]) -> list[float]:
        """Scores in [0, 1] of the steps of one solution, before calibration."""
        return list(map(float, sigmoid(describe(vectors) @ self.weight.astype(float) + self.bias)))

    def scores(self, vectors: Sequence[Floats]) -> list[float]:
        """Calibrated probabilities that each step is right, from the vectors of all of them in order."""
        return [self.card.calibration(score) for score in self.raw(vectors)]

    @property
    def digest(self) -> str:
        """Sixteen hex digits: another head has others."""
        return hashlib.sha256(self.weight.tobytes() + to_json(self.card).encode()).hexdigest()[:16]

    def save(self, directory: Path) -> None:
        """Write both files."""
        directory.mkdir(parents=True, exist_ok=True)
        write_safetensors(directory / WEIGHTS, {"weight": self.weight, "bias": np.array([self.bias], np.float32)})
        write_text(directory / CARD, json.dumps(json.loads(to_json(self.card)), indent=2) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> Head:
        """Raises DataError for a directory without a sound head."""
        path = Path(directory).expanduser()
        remedy = "`stepwise train probe` writes one"
        try:
            card = from_json(HeadCard, json.dumps(read_json(path / CARD, remedy)))
            weights = Checkpoint([path / WEIGHTS])
            head = cls(weights.read("weight"), float(weights.read("bias").reshape(-1)[0]), card)
        except StepwiseError:
            raise
        except (ValueError, LookupError, OSError) as error:
            raise DataError(f"{path} holds no head ({error!s:.200}); {remedy}") from None
        if card.form != _FORM or head.weight.shape != (_length(card.width),):
            raise DataError(
                f"{path}: the head has {len(head.weight)} weights in form {card.form}, this version reads "
                f"{_length(card.width)} in form {_FORM}; fit it anew with `stepwise train probe`"
            )
        return head


def describe(vectors: Sequence[Floats]) -> NDArray[np.float64]:
    """The descriptions (N, F) of the N steps of one solution, from their vectors.

    >>> describe([np.zeros(8 + 9, np.float32)] * 3).shape
    (3, 29)
    """
    if not vectors:
        return np.empty((0, 0))
    own = np.stack(vectors).astype(float)
    statistics, steps = own[:, -_S:], np.arange(len(own))
    sums = np.cumsum(statistics, axis=0) - statistics
    change = np.where(steps[:, None] > 0, statistics - sums / np.maximum(steps, 1)[:, None], 0)
    place = np.stack([steps == 0, np.log1p(steps), steps / 10], axis=1)
    return np.concatenate([own, change, place], axis=1)


def _length(width: int) -> int:
    return 2 * width + 2 * _S + _PLACES


class _Reduction:
    """Descriptions (N, F) with their states replaced by the leading principal components of those of `x`."""

    def __init__(self, x: NDArray[np.float64]):
        self.width = x.shape[1] - 2 * _S - _PLACES  # of both states together
        self.mean, self.scale = x.mean(axis=0), x.std(axis=0)
        self.scale[self.scale < 1e-6] = np.inf  # what never changes says nothing
        z = (x - self.mean) / self.scale
        _, values, self.axes = np.linalg.svd(z[:, : self.width], full_matrices=False)  # (K,), (K, 2E)
        self.unit = values[0] / np.sqrt(len(x)) if len(values) and values[0] > 0 else 1.0

    def __call__(self, x: NDArray[np.float64], components: int) -> NDArray[np.float64]:
        z = (x - self.mean) / self.scale
        parts = [z[:, : self.width] @ self.axes[:components].T / self.unit, z[:, self.width :], np.ones((len(x), 1))]
        return np.concatenate(parts, axis=1)

    def unfold(self, weights: NDArray[np.float64], components: int) -> tuple[NDArray[np.float32], float]:
        """Weights on reduced descriptions as weights (F,) and bias on whole ones."""
        k = min(components, len(self.axes))
        whole = np.concatenate([weights[:k] @ self.axes[:k] / self.unit, weights[k:-1]]) / self.scale
        return whole.astype(np.float32), float(weights[-1] - self.mean @ whole)


class FittedHead(NamedTuple):
    """What `fit_weights` found; `losses` has the mean validation loss in nats by (components, ridge).

    >>> FittedHead(np.zeros(29, np.float32), 0.0, 8, 1.0, {(8, 1.0): 0.6}).losses[8, 1.0]
    0.6
    """

    weight: NDArray[np.float32]
    bias: float
    components: int
    ridge: float
    losses: dict[tuple[int, float], float]


def fit_weights(x: Any, y: Any, x_validation: Any, y_validation: Any) -> FittedHead:
    """Fit on descriptions (N, F) with labels (N,) from 0 wrong to 1 right, and choose on the others; deterministic.

    Raises ScorerError where the labels of a part are all equal.

    >>> steps, labels = np.random.default_rng(0).normal(size=(40, 29)), np.arange(40) % 2
    >>> fit_weights(steps, labels, steps, labels).weight.shape
    (29,)
    """
    for name, labels in (("training", y), ("validation", y_validation)):
        if not len(labels) or min(labels) == max(labels):
            raise ScorerError(f"the labels of the {len(labels)} {name} steps are all equal; give right and wrong ones")
    x, y, held = np.asarray(x), np.asarray(y), np.asarray(y_validation)
    reduction, fits = _Reduction(x), {}
    losses: dict[tuple[int, float], float] = {}
    for components in dict.fromkeys(min(n, len(reduction.axes)) for n in COMPONENTS):
        features, other = (reduction(part, components) for part in (x, np.asarray(x_validation)))
        for ridge in RIDGES:
            prices = np.full(features.shape[1], ridge)
            prices[-1] = 1e-6  # the bias is free
            weights = fits[components, ridge] = logistic(features, y, prices)
            values = other @ weights
            losses[components, ridge] = float((np.logaddexp(0, values) - held * values).mean())
    best = min(losses, key=lambda key: losses[key])
    return FittedHead(*reduction.unfold(fits[best], best[0]), *best, losses)
