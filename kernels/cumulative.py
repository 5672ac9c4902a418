"""Inverse of the cumulative mass of a row, in two steps: a block by its mass, a part inside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_BELOW_ONE = 1.0 - 2.0**-53


class CumulativeMass:
    """Cumulative masses of the parts of a row (its tokens, or chunks of them), to be searched.

    parts: masses [NB, P] of the parts of each block, relative to something of the block's own.
    log_scale: log of what that is: float64 [NB]. The masses of all parts must sum to about 1.
    """

    __slots__ = ("_bounds", "_ends", "_last")

    def __init__(self, parts: Array, log_scale: Float) -> None:
        # A block without mass may have any scale: one that is finite keeps 0 from becoming a NaN.
        scale = np.exp(np.minimum(log_scale, 700.0))
        self._ends = np.empty(parts.size + 1)
        self._ends[0] = 0.0
        (parts * scale[:, None]).cumsum(out=self._ends[1:])
        self._bounds = self._ends[:: parts.shape[1]].copy()
        self._last = self._bounds[-1] * _BELOW_ONE

    def find(self, uniforms: Float) -> tuple[Ids, Float]:
        """The part that each draw falls in, and how much of the row's mass lies before the draw."""
        bounds = self._bounds
        if bounds.size == 2:
            points = uniforms[:, 1] * bounds[1]
        else:
            blocks = bounds[1:].searchsorted(uniforms[:, 0] * bounds[-1], side="right")
            begins = bounds[blocks]
            points = begins + uniforms[:, 1] * (bounds[blocks + 1] - begins)
            # Rounding must not carry a draw past the last part that holds any mass.
            np.minimum(points, self._last, out=points)
        return self._ends[1:].searchsorted(points, side="right"), points

    def shares(self, parts: Ids, points: Float) -> Float:
        """Which share of its part lies before each draw: in [0, 1)."""
        begins = self._ends[parts]
        return np.minimum((points - begins) / (self._ends[parts + 1] - begins), _BELOW_ONE)
