"""One row of logits, read once: masses by blocks, draws from them, and removal of what was drawn.

This is the numpy form of the two-kernel factorisation: the row is cut into blocks of `BLOCK`
tokens, each with its own reference maximum, so nothing underflows however low the temperature; a
draw chooses a block by its mass and then a token inside it, so one draw reads `V / BLOCK` numbers
and one block. Exact because P(block) P(token | block) = p(token | allowed).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, unpack_mask

BLOCK = 2048
"""Tokens a block. Part of the law of a seed:
another value draws other tokens for the same uniforms.
"""

_FLOOR = -1e30  # reference of a block that holds nothing: finite, or -inf minus it is a NaN
_RENEW = 1e-20  # a block whose sum falls below this is read again relative to its own live maximum

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def log_sum_exp(values: Float) -> float:
    """log(sum(exp(values))) in float64; -inf for nothing at all, NaN if one is NaN."""
    top = float(values.max(initial=-np.inf))
    if not np.isfinite(top):
        return top
    return top + float(np.log(np.exp(values - top).sum()))


class Row:
    """What is left of one row of logits: draws, exact masses, and removal.

    logits: float32 or float64 [V], not changed; any -inf is a token of no mass. NaN or +inf:
        `finite` is False.
    mask: which tokens may be drawn at all (uint32 [W]), None for all of them.
    inverse_temperature: 1 / T, folded in before anything else.

    log_z_all: log of the mass of the whole row under exp(logits / T); log_z_allowed: of the masked
        part of it.
    Masses are in the row's own precision, their sums in float64. What is left after a removal is
    summed again, never got by subtraction.
    """

    __slots__ = (
        "_block",
        "_cdf",
        "_cumulative",
        "_inverse_temperature",
        "_logits",
        "_mask_bits",
        "_reference",
        "_removed",
        "_slots",
        "_used",
        "_weights",
        "finite",
        "log_blocks",
        "log_z_all",
        "log_z_allowed",
        "size",
    )

    def __init__(
        self, logits: npt.NDArray[Any], mask: Mask | None = None, inverse_temperature: float = 1.0
    ) -> None:
        self.size = logits.size
        self._logits = logits
        self._inverse_temperature = inverse_temperature
        self._block = BLOCK if self.size > BLOCK else max(self.size, 1)
        self._removed: list[int] = []
        self._slots: dict[int, int] = {}
        self._used = 0
        self._cdf: Float | None = None
        self._cumulative: Float | None = None
        self._mask_bits: npt.NDArray[np.bool_] | None = None
        with np.errstate(all="ignore"):
            self._read(logits)
            self.log_z_all = log_sum_exp(self.log_blocks)
            self.finite = bool(self.log_z_all < np.inf)  # False for a NaN too
            if mask is not None and self.finite:
                self._apply(mask)
                self.log_z_allowed = log_sum_exp(self.log_blocks)
            else:
                self.log_z_allowed = self.log_z_all

    def copy(self) -> Row:
        """The same row as read, from which draws and removals go on apart."""
        other = object.__new__(Row)
        for name in Row.__slots__:
            setattr(other, name, getattr(self, name))
        other._weights = self._weights.copy()
        other._reference = self._reference.copy()
        other.log_blocks = self.log_blocks.copy()
        other._removed = list(self._removed)
        other._slots = {}
        other._used = 0
        other._cdf = None
        return other

    def _read(self, logits: npt.NDArray[Any]) -> None:
        """Fill weights [NB, BLOCK] relative to each block's maximum,
        and the log mass of each block.
        """
        blocks = max(-(-self.size // self._block), 1)
        padded = np.empty(blocks * self._block, logits.dtype)
        padded[: self.size] = logits
        padded[self.size :] = -np.inf
        weights = padded.reshape(blocks, self._block)
        reference = np.maximum(weights.max(axis=1, keepdims=True), _FLOOR)
        weights -= reference
        if self._inverse_temperature != 1.0:
            weights *= weights.dtype.type(self._inverse_temperature)
        np.exp(weights, out=weights)
        self._weights = weights
        self._reference = reference[:, 0].astype(np.float64)
        self._sum_blocks()

    def _sum_blocks(self) -> None:
        sums = self._weights.sum(axis=1).astype(np.float64)
        self.log_blocks = self._reference * self._inverse_temperature + np.log(sums)

    def _apply(self, mask: Mask) -> None:
        bits = np.zeros(self._weights.size, np.bool_)
        bits[: self.size] = unpack_mask(mask, self.size)
        self._mask_bits = bits.reshape(self._weights.shape)
        self._weights *= self._mask_bits
        sums = self._weights.sum(axis=1).astype(np.float64)
        self.log_blocks = self._reference * self._inverse_temperature + np.log(sums)
        for block in np.flatnonzero((sums < _RENEW) & self._mask_bits.any(axis=1)):
            self._renew(int(block))

    def _renew(self, block: int) -> None:
        """Read one block again relative to the maximum of what is left in it."""
        start = block * self._block
        logits = self._logits[start : start + self._block].astype(np.float64)
        live = np.ones(logits.size, np.bool_)
        if self._mask_bits is not None:
            live &= self._mask_bits[block, : logits.size]
        live[[t - start for t in self._removed if 0 <= t - start < logits.size]] = False
        logits[~live] = -np.inf
        reference = max(float(logits.max()), _FLOOR)
        weights = np.exp((logits - reference) * self._inverse_temperature)
        self._weights[block, : logits.size] = weights
        self._reference[block] = reference
        total = float(self._weights[block].sum())
        self.log_blocks[block] = reference * self._inverse_temperature + np.log(total)

    def log_live(self) -> float:
        """Log of the mass that is left: what is allowed and not removed."""
        with np.errstate(all="ignore"):
            return log_sum_exp(self.log_blocks)

    def share(self, tokens: list[int]) -> float:
        """How much of what is left the tokens hold, none of them removed: from 0 to 1."""
        with np.errstate(all="ignore"):
            logits = self._logits[tokens].astype(np.float64) * self._inverse_temperature
            return float(np.exp(logits - log_sum_exp(self.log_blocks)).sum())

    @staticmethod
    def fraction(log_part: float, log_whole: float) -> float:
        """exp(log_part - log_whole), and exactly 1 for equal ones."""
        return 1.0 if log_part == log_whole else math.exp(min(log_part - log_whole, 0.0))

    def log_p(self, token: int) -> float:
        """Log probability of one token under the whole row, formed in float64. -inf for no mass."""
        with np.errstate(all="ignore"):
            return float(self._logits[token]) * self._inverse_temperature - self.log_z_all

    def law(self) -> Float:
        """Probability of each token in the next draw:
        float64 [V], zero everywhere when nothing is left.
        """
        with np.errstate(all="ignore"):
            log_live = log_sum_exp(self.log_blocks)
            if log_live == -np.inf:
                return np.zeros(self.size)
            scale = np.exp(self.log_blocks - log_live)
            weights = self._weights.astype(np.float64)
            share = weights / weights.sum(axis=1, keepdims=True)
            share[scale == 0.0] = 0.0
            law: Float = (share * scale[:, None]).reshape(-1)[: self.size]
            return law

    def entropy(self) -> float:
        """Entropy in nats of the whole row (before mask and removals)."""
        with np.errstate(all="ignore"):
            log_p = self._logits.astype(np.float64) * self._inverse_temperature - self.log_z_all
            p = np.exp(log_p)
            return float(-(p * np.maximum(log_p, _FLOOR)).sum())

    def take(self, uniforms: Float) -> Ids:
        """Independent draws from what is left by two uniforms each, block and then token: int64
        [n].

        uniforms: float64 [n, 2] in [0, 1). The row must have mass left.
        """
        if self._cumulative is None:
            with np.errstate(all="ignore"):
                mass = np.exp(self.log_blocks - self.log_blocks.max())
            self._cumulative = np.cumsum(mass)
        cumulative = self._cumulative
        blocks = np.searchsorted(cumulative, uniforms[:, 0] * cumulative[-1], side="right")
        slots = np.array([self._slot(block) for block in blocks.tolist()], np.int64)
        assert self._cdf is not None
        flat = self._cdf[: self._used].reshape(-1)
        # Slot i holds i + (its own cumulative share), so one search serves draws from many blocks.
        inside = np.searchsorted(flat, slots + uniforms[:, 1], side="right") - slots * self._block
        return blocks * self._block + inside

    def _slot(self, block: int) -> int:
        """Where the cumulative shares of a block stand in `_cdf`, computed at its first draw."""
        slot = self._slots.get(block)
        if slot is None:
            if self._cdf is None:
                self._cdf = np.empty(self._weights.shape, np.float64)
            slot = self._slots[block] = self._used
            self._used += 1
            self._fill(slot, block)
        return slot

    def _fill(self, slot: int, block: int) -> None:
        assert self._cdf is not None
        shares = np.cumsum(self._weights[block], dtype=np.float64)
        shares /= shares[-1]
        shares += slot
        self._cdf[slot] = shares

    def remove(self, tokens: list[int]) -> None:
        """Take tokens out of what may be drawn, and sum the touched blocks again."""
        if not tokens:
            return
        self._removed.extend(tokens)
        self._weights.reshape(-1)[tokens] = 0
        with np.errstate(all="ignore"):
            for block in {token // self._block for token in tokens}:
                total = float(self._weights[block].sum())
                if total < _RENEW:
                    self._renew(block)
                else:
                    self.log_blocks[block] = self._reference[
                        block
                    ] * self._inverse_temperature + np.log(total)
                slot = self._slots.get(block)
                if slot is not None and self.log_blocks[block] > -np.inf:
                    self._fill(slot, block)
        self._cumulative = None
