"""Resampling of particles: which ancestor each particle goes on from.

Every scheme gives particle i an expected N W_i offspring, W the normalised weights, which is all
that keeps the evidence unbiased; they differ in how far offspring counts scatter (multinomial most,
systematic least). Each is made of choices among finitely many outcomes, so that it can be
enumerated. Douc, Cappe, Moulines, "Comparison of resampling schemes for particle filtering" (2005).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from midstream.middleware.random import Source

Float = npt.NDArray[np.float64]
Resampling = Literal["systematic", "stratified", "residual", "multinomial"]


def effective_sample_size(log_weights: Float) -> float:
    """1 / sum W_i^2 for normalised weights W: from 1 to N, and 0 when every weight is 0."""
    top = log_weights.max(initial=-np.inf)
    if top == -np.inf:
        return 0.0
    weights = np.exp(log_weights - top)
    return float(weights.sum() ** 2 / (weights * weights).sum())


def systematic(weights: Float, source: Source) -> list[int]:
    """One uniform u for all: particle j goes on from where (j + u) / N falls in the cumulative
    weights.

    Only the order of N u's break points counts, so u is drawn as a choice among the intervals
    between them.
    """
    n = weights.size
    scaled = np.cumsum(weights) * n
    breaks = np.unique(np.concatenate([[0.0], np.mod(scaled[:-1], 1.0), [1.0]]))
    interval = source.choose(np.diff(breaks))
    middle = 0.5 * (breaks[interval] + breaks[interval + 1])
    return _ancestors(scaled, np.arange(n) + middle)


def stratified(weights: Float, source: Source) -> list[int]:
    """A uniform for each particle: j goes on from where (j + u_j) / N falls in the cumulative
    weights.
    """
    n = weights.size
    ends = np.cumsum(weights) * n
    starts = ends - weights * n
    ancestors = []
    for j in range(n):
        overlap = np.minimum(ends, j + 1.0) - np.maximum(starts, float(j))
        ancestors.append(source.choose(np.maximum(overlap, 0.0)))
    return ancestors


def residual(weights: Float, source: Source) -> list[int]:
    """floor(N W_i) offspring for certain, the rest by independent choices among the remainders."""
    n = weights.size
    scaled = weights * n
    whole = np.floor(scaled + 1e-12)  # a weight that is an integer up to rounding has no remainder
    remainders = np.maximum(scaled - whole, 0.0)
    ancestors: list[int] = np.repeat(np.arange(n), whole.astype(np.int64)).tolist()
    ancestors += [source.choose(remainders) for _ in range(n - len(ancestors))]
    return sorted(ancestors)


def multinomial(weights: Float, source: Source) -> list[int]:
    """Independent choices."""
    return sorted(source.choose(weights) for _ in range(weights.size))


def _ancestors(scaled: Float, points: Float) -> list[int]:
    found = np.searchsorted(scaled, points, side="right")
    # Rounding may end the sum below N: the last particle of positive weight takes what is over.
    last = int(np.flatnonzero(np.diff(scaled, prepend=0.0) > 0)[-1])
    ancestors: list[int] = np.minimum(found, last).tolist()
    return ancestors


SCHEMES: dict[str, Callable[[Float, Source], list[int]]] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
}
"""Each takes weights float64 [N] that sum to 1 and gives the ancestor of each particle, [N],
in ascending order.
"""
