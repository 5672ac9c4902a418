"""Top-k, top-p and min-p as sets of tokens, in the order and with the ties of transformers'
warpers.

Each filter works on what the one before it left, renormalised: top-k keeps every token that is not
below the k-th largest (ties stay), top-p the smallest set of most probable tokens whose mass
reaches p (of equal tokens the lower id goes first, the token that crosses p stays), min-p those
with at least min_p times the largest probability.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]


def truncated_set(
    logits: npt.NDArray[Any],  # [V]
    *,
    inverse_temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Bool:
    """Which tokens of one row survive truncation: bool [V]. Tokens of no mass never do.

    top_k 0, top_p 1 and min_p 0 switch the filters off.
    """
    scaled = logits.astype(np.float64) * inverse_temperature
    kept: Bool = scaled > -np.inf
    if 0 < top_k < int(kept.sum()):
        kept &= scaled >= np.partition(scaled, -top_k)[-top_k]
    if top_p < 1.0 and kept.any():
        kept &= _nucleus(scaled, kept, top_p)
    if min_p > 0.0 and kept.any():
        kept &= scaled >= scaled[kept].max() + np.log(min_p)
    return kept


def _nucleus(scaled: npt.NDArray[np.float64], kept: Bool, top_p: float) -> Bool:
    ids = np.flatnonzero(kept)
    order = ids[np.argsort(-scaled[ids], kind="stable")]
    mass = np.exp(scaled[order] - scaled[order[0]])
    # Summed from the tail: a token goes when it and all below it hold at most 1 - top_p.
    tail = np.cumsum(mass[::-1])[::-1]
    survivors = order[tail > (1.0 - top_p) * tail[0]]
    result = np.zeros(kept.size, np.bool_)
    result[survivors if survivors.size else order[:1]] = True
    return result
