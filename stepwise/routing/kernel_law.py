"""Observation laws smoothed by kernels, as TRIM's published code does (arXiv 2601.10245): 20 bins of equal width."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from stepwise.routing.belief import ObservationLaw
from stepwise.routing.fit_data import EARLIER, NOW, RIGHT

Array = NDArray[np.float64]
BINS = 20


def kernel_law(scores: Array, states: NDArray[np.int64], least: Array | None = None) -> ObservationLaw:
    """The law of the score, or with `least` (least earlier scores) that of the pair; all (n,).

    Gaussian kernels with Scott's bandwidth, reflected at 0 and 1, read at the bins' middles. Each state needs at least
    two observations that differ.
    """
    points = np.stack([scores] if least is None else [least, scores])
    rows = np.stack([_kernel(points[:, states == state]) for state in (RIGHT, EARLIER, NOW)])
    return law_from(rows, pair=least is not None)


def _kernel(points: Array) -> Array:
    """Density of `points` (1 or 2, n) at the middles of the bins, current score running fastest, adding up to 1."""
    size, n = points.shape
    bandwidth = np.atleast_2d(np.cov(points)) * n ** (-2 / (size + 4)) + 1e-6 * np.eye(size)
    inverse = np.linalg.inv(bandwidth)
    middles = (np.arange(BINS) + 0.5) / BINS
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*[middles] * size, indexing="ij")])
    density = np.zeros(grid.shape[1])
    for signs in product(*[((1, 0), (-1, 0), (-1, 2))] * size):
        mirrored = np.stack([sign * row + shift for (sign, shift), row in zip(signs, points, strict=True)])
        gaps = grid[:, :, None] - mirrored[:, None, :]
        density += np.exp(-0.5 * np.einsum("igs,ij,jgs->gs", gaps, inverse, gaps)).sum(axis=1)
    density += 1e-9 * density.sum()  # where no point is near, every state is as likely as another
    result: Array = density / density.sum()
    return result


def law_from(rows: Array, pair: bool) -> ObservationLaw:
    """The law with these rows, (3, 20) or (3, 400), over bins of equal width."""
    first, second, third = (tuple(row.tolist()) for row in rows)
    return ObservationLaw(tuple(i / BINS for i in range(BINS + 1)), (first, second, third), pair)
