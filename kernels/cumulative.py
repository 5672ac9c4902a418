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

    ends: float64 [NB P + 1], 0 and then the mass up to the end of each part, P parts a block.
    """

    __slots__ = ("_bounds", "_ends", "_last")

    def __init__(self, ends: Float, blocks: int) -> None:
        self._ends = ends
        self._bounds = ends[:: (ends.size - 1) // blocks]
        self._last = ends[-1] * _BELOW_ONE

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


def cumulative_masses(parts: Array, log_scale: Float, rows: int) -> list[CumulativeMass]:
    """Of rows of equal length, one after another.

    parts: masses [R NB, P] of the parts of each block, relative to something of the block's own.
    log_scale: log of what that is: float64 [R NB]. The masses of a row must sum to about 1.
    """
    ends = cumulative_ends(parts, log_scale, rows)
    return [CumulativeMass(each, len(parts) // rows) for each in ends]


def cumulative_ends(parts: Array, log_scale: Float, rows: int) -> Float:
    """What each `CumulativeMass` of `cumulative_masses` is made of: float64 [R, NB P + 1]."""
    # A block without mass may have any scale: one that is finite keeps 0 from becoming a NaN.
    scale = np.exp(np.minimum(log_scale, 700.0))
    ends = np.empty((rows, parts.size // rows + 1))
    ends[:, 0] = 0.0
    (parts * scale[:, None]).reshape(rows, -1).cumsum(axis=1, out=ends[:, 1:])
    return ends


def find_each(ends: Float, blocks: int, uniforms: Float) -> tuple[Ids, Float]:
    """One draw of each row: the part that it falls in, and which share of that lies before it.

    ends: [R, NB P + 1]. uniforms: [R, 2]. The same as `CumulativeMass` finds in each row; of a row
    without mass, any part.
    """
    width = (ends.shape[1] - 1) // blocks
    every = np.arange(len(ends))
    if blocks == 1:
        points = uniforms[:, 1] * ends[:, -1]
    else:
        bounds = ends[:, ::width]
        reached = bounds[:, 1:] <= (uniforms[:, 0] * bounds[:, -1])[:, None]
        chosen = np.minimum(reached.sum(axis=1), blocks - 1)
        begins = bounds[every, chosen]
        points = begins + uniforms[:, 1] * (bounds[every, chosen + 1] - begins)
        np.minimum(points, bounds[:, -1] * _BELOW_ONE, out=points)
    parts = np.minimum((ends[:, 1:] <= points[:, None]).sum(axis=1), ends.shape[1] - 2)
    begins = ends[every, parts]
    return parts, np.minimum((points - begins) / (ends[every, parts + 1] - begins), _BELOW_ONE)
