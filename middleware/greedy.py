"""Greedy decoding under a constraint: the most probable allowed token. Ties go to the lowest id."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, unpack_mask
from midstream.middleware.estimators import Checks, Schedule


def greedy_mask(logits: npt.NDArray[Any], mask: Mask) -> int:
    """The most probable token of a mask, which must allow one of positive probability."""
    allowed = np.where(unpack_mask(mask, logits.size), logits, -np.inf)
    return int(allowed.argmax())


def greedy_walk(logits: npt.NDArray[Any], superset: Mask, checks: Checks) -> int | None:
    """Down from the most probable token of the superset until one is allowed; None if none is.

    The walk asks in rounds and sorts no more of the row than it reads.
    """
    ids = np.flatnonzero(unpack_mask(superset, logits.size) & (logits > -np.inf))
    for size in Schedule().sizes():
        if not ids.size:
            return None
        values = logits[ids]
        count = min(size, ids.size)
        # All ties of the round's last value belong to the round, so that the lowest id goes first.
        least = np.partition(values, ids.size - count)[ids.size - count]
        inside = values >= least
        order = np.argsort(-values[inside], kind="stable")
        tokens = checks.merged(ids[inside][order].tolist())
        answers = checks.ask(tokens)
        for token in tokens:
            if answers[token]:
                return token
        ids = ids[~inside]
    return None
