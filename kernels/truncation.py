"""Top-k, top-p and min-p as sets of tokens, in the order and with the ties of transformers'
warpers.

Each filter works on what the one before it left, renormalised: top-k keeps every token that is not
below the k-th largest (ties stay), top-p the smallest set of most probable tokens whose mass
reaches p (of equal tokens the lower id goes first, the token that crosses p stays), min-p those
with at least min_p times the largest probability (ties stay). What all of them keep is one cut of
the row ordered by logit and, among equals, by id: the `Edge` of its last token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.blocks import CHUNK, NO_MASS

Array = npt.NDArray[Any]
Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]

ALL_TIES = (1 << 31) - 1
"""The `last` of an edge at which every tie stays."""

_BINS = 1024


@dataclass(frozen=True, slots=True)
class Edge:
    """Where truncation cuts a row.

    threshold: logits above it stay, as they are given, before temperature.
    last: of logits equal to it, those of ids up to this one stay.
    """

    threshold: float
    last: int = ALL_TIES

    def keeps(self, logits: Array) -> Bool:
        """Which tokens of a row of logits [V] stay: bool [V]."""
        kept: Bool = logits > self.threshold
        ties = np.flatnonzero(logits == self.threshold)
        kept[ties[ties <= self.last]] = True
        return kept


NOTHING_CUT = Edge(NO_MASS, -1)
"""Keeps every token that has mass."""


def truncation_edge(
    logits: Array,  # [V]
    *,
    inverse_temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Edge:
    """Where the filters cut one row of float32 or float64 logits, -inf among them or not.

    top_k 0, top_p 1 and min_p 0 switch the filters off. Masses are summed in float64.
    """
    top = float(logits.max(initial=-np.inf))
    if not top > NO_MASS:
        return NOTHING_CUT
    edge = _top_k(logits, top_k) if top_k > 0 else NOTHING_CUT
    if top_p < 1.0:
        edge = _top_p(logits, edge, top, inverse_temperature, top_p)
    if min_p > 0.0:
        # The least logit of this precision that is not below the edge of min-p.
        exact = top + math.log(min_p) / inverse_temperature
        least = logits.dtype.type(exact)
        if float(least) < exact:
            least = np.nextafter(least, logits.dtype.type(np.inf))
        if least > edge.threshold:
            edge = Edge(float(least))
    return edge


def truncated_set(
    logits: Array,  # [V]
    *,
    inverse_temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Bool:
    """Which tokens of one row survive truncation: bool [V]. Tokens of no mass never do.

    top_k 0, top_p 1 and min_p 0 switch the filters off.
    """
    return truncation_edge(
        logits,
        inverse_temperature=inverse_temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    ).keeps(logits)


def _top_k(logits: Array, top_k: int) -> Edge:
    """The k-th largest logit, of rows that have more than k with mass."""
    if top_k >= logits.size:
        return NOTHING_CUT
    chunks = logits.size // CHUNK
    if top_k <= chunks:
        # Each maximum of a chunk is a token: the k-th largest of them is no larger than the k-th
        # largest token, and few tokens are as large.
        tops = np.maximum.reduce(logits[: chunks * CHUNK].reshape(chunks, CHUNK), axis=1)
        logits = logits[logits >= np.partition(tops, -top_k)[-top_k]]
    least = float(np.partition(logits, -top_k)[-top_k])
    return Edge(least) if least > NO_MASS else NOTHING_CUT


def _top_p(logits: Array, edge: Edge, top: float, inverse_temperature: float, top_p: float) -> Edge:
    """The last token of the nucleus of what `edge` keeps."""
    ids = np.flatnonzero(edge.keeps(logits))
    x = logits[ids]
    with np.errstate(over="ignore"):
        rough = np.exp((x - x.dtype.type(top)) * x.dtype.type(inverse_temperature))
    # Tokens that may go even if all were as large as the largest of them, with room for rounding.
    low = rough * (1.01 * x.size) <= (1.0 - top_p) * rough.sum(dtype=np.float64)
    rest = float(rough[low].sum(dtype=np.float64))
    ids, x = ids[~low], x[~low]
    mass = x.astype(np.float64)
    mass -= top
    mass *= inverse_temperature
    np.exp(mass, out=mass)
    spare = (1.0 - top_p) * (rest + float(mass.sum()))
    here, rest = _bin_of_edge(x, mass, rest, spare)
    ids, x, mass = ids[here], x[here], mass[here]
    # From the least on, and among equals from the largest id on: a token goes when it and all
    # below it hold at most 1 - top_p.
    order = np.lexsort((-ids, x))
    tail = rest + np.cumsum(mass[order])
    crossing = min(int(tail.searchsorted(spare, side="right")), order.size - 1)
    last = order[crossing]
    return Edge(float(x[last]), int(ids[last]))


def _bin_of_edge(x: Array, mass: Float, rest: float, spare: float) -> tuple[Bool, float]:
    """Which tokens are near the last that may go, by one histogram; the mass of all below them."""
    low = x.min()
    width = max(x.max() - low, np.finfo(x.dtype).tiny)
    bins = ((x - low) / width * _BINS).astype(np.int32)
    tail = rest + np.cumsum(np.bincount(bins, mass))
    edge = min(int(tail.searchsorted(spare, side="right")), tail.size - 1)
    return bins == edge, float(tail[edge - 1]) if edge else rest
