"""One row of logits, read once: masses by blocks, draws from them, and removal of what was drawn.

This is the numpy form of the two-kernel factorisation: the row is cut into blocks of `BLOCK`
tokens, each with its own reference maximum, so nothing underflows however low the temperature; a
draw chooses a block by its mass and then a token inside it. Exact because
P(block) P(token | block) = p(token | allowed).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask
from midstream.kernels.cumulative import CumulativeMass

BLOCK = 2048
"""Tokens a block. Part of the law of a seed:
another value draws other tokens for the same uniforms.
"""

CHUNK = 64
"""Tokens a chunk. In long rows sums are kept for chunks, so that a draw or a removal reads one
chunk and not the block. For speed alone: the same uniforms draw the same token.
"""

_LONG = 4 * BLOCK
NO_MASS = -1e30
"""Logits down to this have no mass: hosts mask with -inf or with the least finite number."""
_LOG_RENEW = math.log(1e-6)
"""A block whose sum falls below this is read again relative to its own live maximum."""

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def log_sum_exp(values: Float) -> float:
    """log(sum(exp(values))) in float64; -inf for nothing at all, NaN if one is NaN."""
    top = float(np.maximum.reduce(values, initial=-np.inf))
    if values.size == 1 or not math.isfinite(top):
        return top
    return top + math.log(np.add.reduce(np.exp(values - top)))


class Row:
    """What is left of one row of logits: draws, exact masses, and removal.

    logits: float32 or float64 [V], not changed; any -inf is a token of no mass. NaN or +inf:
        `finite` is False.
    mask: which tokens may be drawn at all (uint32 [W]), None for all of them.
    inverse_temperature: 1 / T, folded in before anything else.

    log_z_all: log of the mass of the whole row under exp(logits / T); log_z_allowed: of the masked
        part of it.
    Masses are in the row's own precision, as are sums over a chunk; other sums are in float64. What
    is left after a removal is summed again, never got by subtraction.
    """

    __slots__ = (
        "_bits",
        "_index",
        "_inverse_temperature",
        "_log_live",
        "_log_reference",
        "_log_sums",
        "_logits",
        "_parts",
        "_removed",
        "_shared",
        "_weights",
        "finite",
        "log_blocks",
        "log_z_all",
        "log_z_allowed",
        "size",
    )

    def __init__(
        self, logits: Array, mask: Mask | None = None, inverse_temperature: float = 1.0
    ) -> None:
        self.size = logits.size
        self._logits = logits
        self._inverse_temperature = inverse_temperature
        self._removed: list[int] = []
        self._bits: npt.NDArray[np.uint8] | None = None
        self._index: CumulativeMass | None = None
        self._shared = False
        with np.errstate(all="ignore"):
            self._read(logits)
            self.log_z_all = log_sum_exp(self.log_blocks)
            self.finite = self.log_z_all < math.inf  # False for a NaN too
            self.log_z_allowed = self.log_z_all
            if mask is not None and self.finite:
                self._apply(mask)
                self.log_z_allowed = log_sum_exp(self.log_blocks)
        self._log_live = self.log_z_allowed

    def copy(self) -> Row:
        """The same row as it is now, from which draws and removals go on apart."""
        other = object.__new__(Row)
        for name in Row.__slots__:
            setattr(other, name, getattr(self, name))
        other._removed = list(self._removed)
        self._shared = other._shared = True
        return other

    def _read(self, logits: Array) -> None:
        """Fill weights [NB, BLOCK], each block relative to its own maximum."""
        block = BLOCK if self.size > BLOCK else max(self.size, 1)
        blocks = max(-(-self.size // block), 1)
        flat = np.empty(blocks * block, logits.dtype)
        flat[: self.size] = logits
        flat[self.size :] = -np.inf
        weights = flat.reshape(blocks, block)
        reference = np.maximum(np.maximum.reduce(weights, axis=1), NO_MASS)
        weights -= reference[:, None]
        if self._inverse_temperature != 1.0:
            weights *= flat.dtype.type(self._inverse_temperature)
        np.exp(weights, out=weights)
        self._weights = weights
        self._parts = _chunk_sums(weights) if self.size > _LONG else weights
        self._log_reference = reference.astype(np.float64) * self._inverse_temperature
        self._log_sums = np.log(np.add.reduce(self._parts, axis=1), dtype=np.float64)
        self.log_blocks = self._log_sums + self._log_reference

    def _sum_again(self, blocks: slice | list[int]) -> None:
        """The masses of some blocks, after a change of their weights."""
        sums = np.add.reduce(self._parts[blocks], axis=1)
        self._log_sums[blocks] = np.log(sums, dtype=np.float64)
        self.log_blocks[blocks] = self._log_sums[blocks] + self._log_reference[blocks]

    def _apply(self, mask: Mask) -> None:
        """Take away what the mask does not allow. Full blocks at both ends stay as they are."""
        count = self._weights.size
        as_bytes = np.ascontiguousarray(mask).view(np.uint8)
        bits = np.unpackbits(as_bytes, bitorder="little", count=count).reshape(self._weights.shape)
        self._bits = bits
        part = slice(None)
        if self.size > _LONG:
            partial = np.flatnonzero(~bits.view(np.bool_).all(axis=1))
            part = slice(int(partial[0]), int(partial[-1]) + 1) if partial.size else slice(0)
        self._weights[part] *= bits[part]
        if self.size > _LONG:
            self._parts[part] = _chunk_sums(self._weights[part])
        self._sum_again(part)
        if np.minimum.reduce(self._log_sums) < _LOG_RENEW:
            low = (self._log_sums < _LOG_RENEW) & bits.any(axis=1)
            for block in np.flatnonzero(low).tolist():
                self._renew(block)

    def _renew(self, block: int) -> None:
        """Read one block again relative to the maximum of what is left in it."""
        size = self._weights.shape[1]
        start = block * size
        logits = self._logits[start : start + size].astype(np.float64)
        live = np.ones(logits.size, np.bool_)
        if self._bits is not None:
            live &= self._bits[block, : logits.size].view(np.bool_)
        live[[t - start for t in self._removed if 0 <= t - start < logits.size]] = False
        logits[~live] = -np.inf
        reference = max(float(logits.max()), NO_MASS)
        weights = np.exp((logits - reference) * self._inverse_temperature)
        self._weights[block, : logits.size] = weights
        if self.size > _LONG:
            self._parts[block] = _chunk_sums(self._weights[block])
        self._log_reference[block] = reference * self._inverse_temperature
        self._sum_again([block])

    def log_live(self) -> float:
        """Log of the mass that is left: what is allowed and not removed."""
        return self._log_live

    def share(self, tokens: list[int]) -> float:
        """How much of what is left the tokens hold, none of them removed: from 0 to 1."""
        logits = self._logits[tokens].astype(np.float64) * self._inverse_temperature
        return float(np.exp(logits - self._log_live).sum())

    @staticmethod
    def fraction(log_part: float, log_whole: float) -> float:
        """exp(log_part - log_whole), and exactly 1 for equal ones."""
        return 1.0 if log_part == log_whole else math.exp(min(log_part - log_whole, 0.0))

    def possible(self) -> npt.NDArray[np.bool_]:
        """Which tokens of the whole row, before mask and removals, have mass: bool [V]."""
        return self._logits > NO_MASS

    def log_p(self, token: int) -> float:
        """Log probability of one token under the whole row, formed in float64. -inf for no mass."""
        return float(self._logits[token]) * self._inverse_temperature - self.log_z_all

    def law(self) -> Float:
        """Probability of each token in the next draw:
        float64 [V], zero everywhere when nothing is left.
        """
        if self._log_live == -math.inf:
            return np.zeros(self.size)
        with np.errstate(all="ignore"):
            scale = np.exp(self.log_blocks - self._log_live)
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
            return float(-(p * np.maximum(log_p, NO_MASS)).sum())

    def take(self, uniforms: Float) -> Ids:
        """Independent draws from what is left by two uniforms each, block and then token: int64
        [n].

        uniforms: float64 [n, 2] in [0, 1). The row must have mass left.
        """
        if self._index is None:
            self._index = CumulativeMass(self._parts, self._log_reference - self._log_live)
        parts, points = self._index.find(uniforms)
        if self.size <= _LONG:
            return parts
        inside = self._weights.reshape(-1, CHUNK)[parts].astype(np.float64).cumsum(axis=1)
        # A share below 1 of the last sum lies below that sum: a token of weight 0 is never reached.
        reached = self._index.shares(parts, points) * inside[:, -1]
        tokens: Ids = parts * CHUNK + (inside <= reached[:, None]).sum(axis=1)
        return tokens

    def remove(self, tokens: list[int]) -> None:
        """Take tokens out of what may be drawn, and sum again what they stood in."""
        if not tokens:
            return
        if self._shared:
            self._part_from_copies()
        self._removed.extend(tokens)
        self._weights.reshape(-1)[tokens] = 0
        if self.size > _LONG:
            chunks = list({token // CHUNK for token in tokens})
            weights = self._weights.reshape(-1, CHUNK)[chunks]
            self._parts.reshape(-1, 1)[chunks] = _chunk_sums(weights)
        size = self._weights.shape[1]
        blocks = list({token // size for token in tokens})
        with np.errstate(all="ignore"):
            self._sum_again(blocks)
            low = self._log_sums[blocks] < _LOG_RENEW
            for i in np.flatnonzero(low).tolist():
                self._renew(blocks[i])
            self._log_live = log_sum_exp(self.log_blocks)
        self._index = None

    def _part_from_copies(self) -> None:
        self._weights = self._weights.copy()
        self._parts = self._parts.copy() if self.size > _LONG else self._weights
        self._log_reference = self._log_reference.copy()
        self._log_sums = self._log_sums.copy()
        self.log_blocks = self.log_blocks.copy()
        self._shared = False


def _chunk_sums(weights: Array) -> Float:
    """Sums of the chunks of [n, k CHUNK], or of [k CHUNK]: float64 [n, k] or [k]."""
    chunks = weights.reshape(*weights.shape[:-1], weights.shape[-1] // CHUNK, CHUNK)
    # A fifth of the time of `sum`, on an axis as short as this one.
    sums: Float = np.einsum("...i->...", chunks).astype(np.float64)
    return sums
