"""Rows of logits in the order of a vocabulary's bytes, read once and asked for many stretches.

Who follows a text by bytes asks a row at every byte that a token of it lives through, each time for
a shorter stretch; `midstream.kernels.next_byte` asks many rows one question each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import unpack_mask
from midstream.kernels.blocks import NO_MASS
from midstream.kernels.byte_sorted import ByteSortedVocabulary

Float = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]

_RENEW = 1e-290  # a stretch of less mass beside the greatest token's is read again for itself


def log_normalisers(logits: npt.NDArray[Any], inverse_temperature: float) -> Float:
    """log sum exp(logits / temperature) of each row, in float64: [R]. NaN for NaN or +inf."""
    with np.errstate(all="ignore"):
        scaled = logits.astype(np.float64)
        if inverse_temperature != 1.0:
            scaled *= inverse_temperature
        top = np.maximum(np.max(scaled, axis=1), NO_MASS)
        scaled -= top[:, None]
        np.exp(scaled, out=scaled)
        return np.asarray(top + np.log(np.add.reduce(scaled, axis=1)))


class SortedRow:
    """One row of logits: log masses of tokens and of stretches of tokens, in nats.

    logits: [V'], V' at least the vocabulary's; ids beyond it are special. mask: the tokens that
        count, None for all; it takes what it refuses from the masses and shares nothing out.
    Masses are of softmax(logits / temperature) of the whole row, good to 1e-12 relative however
    small. A row with a NaN or +inf has NaN everywhere; so has one without mass, whose log_z is
    -inf.
    """

    __slots__ = (
        "_inverse",
        "_log_share",
        "_logits",
        "_renews",
        "_row",
        "_top",
        "_vocabulary",
        "_weights",
        "log_z",
    )

    def __init__(
        self,
        logits: npt.NDArray[Any],
        vocabulary: ByteSortedVocabulary,
        mask: Words | None = None,
        inverse_temperature: float = 1.0,
    ) -> None:
        self._vocabulary = vocabulary
        self._inverse = inverse_temperature
        self._row = logits
        size = len(vocabulary)
        ordered = logits.take(vocabulary.order)
        if logits.size > size:
            ordered = np.concatenate([ordered, logits[size:]])
        with np.errstate(all="ignore"):
            self._top = max(float(np.maximum.reduce(ordered)), NO_MASS)
            weights = ordered.astype(np.float64)
            weights -= self._top
            if inverse_temperature != 1.0:
                weights *= inverse_temperature
            np.exp(weights, out=weights)
            share = float(np.log(np.add.reduce(weights)))
        # Where no weight vanishes beside the greatest, a sum of 0 is one of refused tokens alone.
        self._renews = not float(np.minimum.reduce(weights)) >= _RENEW
        self.log_z = self._top * inverse_temperature + share
        if not math.isfinite(share):
            weights[:], share = math.nan, math.nan
            self.log_z = self.log_z if self.log_z == -math.inf else math.nan
        elif mask is not None:
            refused = ~unpack_mask(mask, logits.size)
            refused[:size] = refused.take(vocabulary.order)
            ordered[refused] = -np.inf
            weights[refused] = 0.0
        self._logits = ordered
        self._weights = weights
        self._log_share = share

    @property
    def logits(self) -> npt.NDArray[Any]:
        """The row as it was given, [V']."""
        return self._row

    @property
    def finite(self) -> bool:
        """False where the row had a NaN or +inf, or no mass at all."""
        return math.isfinite(self.log_z)

    def log_p(self, token: int) -> float:
        """Of one token, whatever the mask says."""
        if not self.finite:
            return math.nan
        return (float(self._row[token]) - self._top) * self._inverse - self._log_share

    def log_sum(self, begin: int, end: int) -> float:
        """Of the tokens that stand from `begin` to `end` in the order."""
        if begin >= end:
            return -math.inf
        total = float(np.add.reduce(self._weights[begin:end]))
        if total >= _RENEW:
            return math.log(total) - self._log_share
        if math.isnan(total):
            return math.nan
        return self._small_sum(begin, end) if self._renews else -math.inf

    def heaviest(self, begin: int, end: int) -> int:
        """Where the most probable of the tokens from `begin` to `end` stands in the order."""
        return begin + int(self._weights[begin:end].argmax())

    def log_special(self) -> float:
        """Of special ids that end nothing, and of ids beyond the vocabulary; no mask counts."""
        known = self._vocabulary
        ids = known.order[known.spelled + known.ending :]
        rest = np.concatenate([self._row[ids], self._row[len(known) :]]).astype(np.float64)
        if not rest.size:
            return -math.inf
        return _log_sum_exp((rest - self._top) * self._inverse) - self._log_share

    def log_end(self) -> float:
        """Of the end of sequence."""
        known = self._vocabulary
        return self.log_sum(known.spelled, known.spelled + known.ending)

    def log_bytes(self, node: int, out: Float) -> None:
        """Write the log mass of each next byte behind a node into out[256], -inf for none."""
        known = self._vocabulary
        first, last = int(known.first_child[node]), int(known.first_child[node + 1])
        out[:256] = -np.inf
        if first == last:
            return
        starts, end = known.low[first:last], int(known.high[node])
        with np.errstate(divide="ignore"):
            sums = np.add.reduceat(self._weights[:end], starts)
            logs = np.log(sums) - self._log_share
        for i in np.flatnonzero(sums < _RENEW).tolist() if self._renews else ():
            logs[i] = self._small_sum(int(starts[i]), int(known.high[first + i]))
        out[known.byte[first:last]] = logs

    def weights(self, begin: int, end: int) -> Float:
        """Masses of the tokens from `begin` to `end` in the order, relative to one another."""
        logits = self._logits[begin:end].astype(np.float64)
        top = max(float(np.maximum.reduce(logits)), NO_MASS)
        masses: Float = np.exp((logits - top) * self._inverse)
        return masses

    def log_masses(self, begin: int, end: int) -> Float:
        """Log masses of the tokens from `begin` to `end` in the order; -inf for the refused."""
        masses: Float = self._logits[begin:end].astype(np.float64) - self._top
        masses *= self._inverse
        masses -= self._log_share
        return masses

    def _small_sum(self, begin: int, end: int) -> float:
        logits = self._logits[begin:end].astype(np.float64)
        return _log_sum_exp((logits - self._top) * self._inverse) - self._log_share


def log_sum(values: Sequence[float] | Float) -> float:
    """log sum exp of logs, -inf for none; NaN if one is NaN."""
    return _log_sum_exp(np.asarray(values, np.float64))


def _log_sum_exp(values: Float) -> float:
    top = float(np.maximum.reduce(values, initial=-np.inf))
    if not top > NO_MASS:
        return top if math.isnan(top) else -math.inf
    return top + math.log(np.add.reduce(np.exp(values - top)))
