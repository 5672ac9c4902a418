"""Greedy decoding under a constraint: the most probable allowed token. Ties go to the lowest id."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, unpack_mask
from midstream.kernels.row import NO_MASS
from midstream.middleware.estimators import Checks, Schedule


def greedy_mask(logits: npt.NDArray[Any], mask: Mask) -> int:
    """The most probable token of a mask, which must allow one of positive probability."""
    allowed = np.where(unpack_mask(mask, logits.size), logits, -np.inf)
    return int(allowed.argmax())


def greedy_walk(
    logits: npt.NDArray[Any], superset: Mask, checks: Checks, limit: int | None
) -> int | None:
    """Down from the most probable token of the superset until one is allowed; None if none is.

    The walk asks in rounds, sorts no more of the row than it reads, and ends after `limit` tokens.
    """
    ids = np.flatnonzero(unpack_mask(superset, logits.size) & (logits > NO_MASS))
    for size in Schedule().sizes():
        if not ids.size:
            return None
        values = logits[ids]
        count = min(size, ids.size)
        # All ties of the round's last value belong to the round, so that the lowest id goes first.
        least = np.partition(values, ids.size - count)[ids.size - count]
        inside = values >= least
        order = np.argsort(-values[inside], kind="stable")
        left = None if limit is None else limit - checks.count
        tokens = checks.merged(ids[inside][order].tolist())[:left]
        answers = checks.ask(tokens)
        for token in tokens:
            if answers[token]:
                return token
        ids = ids[~inside]
        if limit is not None and checks.count >= limit:
            return None
    return None
