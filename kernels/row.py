"""One row of logits, read once: masses by blocks, draws from them, and removal of what was drawn.

This is the numpy form of the two-kernel factorisation: the row is cut into blocks of `BLOCK`
tokens, each with its own reference maximum, so nothing underflows however low the temperature; a
draw chooses a block by its mass and then a token inside it. Exact because
P(block) P(token | block) = p(token | allowed). Sums are kept for chunks of `CHUNK` tokens, so that
a draw or a removal reads `V / CHUNK` sums and one chunk.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, mask_words, unpack_mask

BLOCK = 2048
"""Tokens a block. Part of the law of a seed:
another value draws other tokens for the same uniforms.
"""

CHUNK = 64
"""Tokens a chunk. Speed alone: a block is searched chunk by chunk for the same token."""

_FLOOR = -1e30  # reference of a block that holds nothing: finite, or -inf minus it is a NaN
_RENEW = 1e-20  # a block whose sum falls below this is read again relative to its own live maximum
_BELOW_ONE = 1.0 - 2.0**-53
_ALL = np.uint32(0xFFFFFFFF)

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def log_sum_exp(values: Float) -> float:
    """log(sum(exp(values))) in float64; -inf for nothing at all, NaN if one is NaN."""
    top = float(values.max(initial=-np.inf))
    if values.size == 1 or not math.isfinite(top):
        return top
    return top + math.log(np.exp(values - top).sum())


def _chunk_sums(weights: npt.NDArray[Any]) -> Float:
    """Sums of chunks: [n, k CHUNK] to float64 [n, k]. `einsum`, since `sum` is slow on short axes."""
    chunks = weights.reshape(len(weights), -1, CHUNK)
    return np.einsum("ijk->ij", chunks).astype(np.float64)


class _Index:
    """Cumulative shares of the blocks, and of the chunks inside each block."""

    __slots__ = ("_blocks", "_ends")

    def __init__(self, log_blocks: Float, sums: Float) -> None:
        self._blocks = np.cumsum(np.exp(log_blocks - log_blocks.max()))
        inside = np.cumsum(sums, axis=1)
        totals = inside[:, -1:]
        inside /= np.where(totals > 0.0, totals, 1.0)
        # A chunk of block b ends at b + its cumulative share: one search serves draws from many blocks.
        inside += np.arange(len(sums))[:, None]
        self._ends = np.concatenate([[0.0], inside.reshape(-1)])

    def find(self, uniforms: Float) -> tuple[Ids, Float]:
        """The chunk of each draw, and which share of the chunk lies below the draw: [n] and [n]."""
        blocks = self._blocks.searchsorted(uniforms[:, 0] * self._blocks[-1], side="right")
        points = blocks + uniforms[:, 1]
        chunks = self._ends[1:].searchsorted(points, side="right")
        begins = np.maximum(self._ends[chunks], blocks)
        shares = (points - begins) / (self._ends[chunks + 1] - begins)
        return chunks, np.minimum(shares, _BELOW_ONE)


class Row:
    """What is left of one row of logits: draws, exact masses, and removal.

    logits: float32 or float64 [V], not changed; any -inf is a token of no mass. NaN or +inf:
        `finite` is False.
    mask: which tokens may be drawn at all (uint32 [W]), None for all of them.
    inverse_temperature: 1 / T, folded in before anything else.

    log_z_all: log of the mass of the whole row under exp(logits / T); log_z_allowed: of the masked
        part of it.
    Masses are in the row's own precision, as are their sums over a chunk; all other sums are in
    float64. What is left after a removal is summed again, never got by subtraction.
    """

    __slots__ = (
        "_index",
        "_inverse_temperature",
        "_log_live",
        "_logits",
        "_reference",
        "_removed",
        "_shared",
        "_sums",
        "_weights",
        "_words",
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
        self._removed: list[int] = []
        self._shared = False
        self._words: Mask | None = None
        self._index: _Index | None = None  # made by the first draw
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

    def _read(self, logits: npt.NDArray[Any]) -> None:
        """Fill weights [NB, BLOCK] relative to each block's maximum, and the sums [NB, chunks]."""
        block = BLOCK if self.size > BLOCK else -(-max(self.size, 1) // CHUNK) * CHUNK
        blocks = max(-(-self.size // block), 1)
        flat = np.empty(blocks * block, logits.dtype)
        reference = np.full(1, _FLOOR, logits.dtype)
        if self.size:
            tops = np.maximum.reduceat(logits, np.arange(0, self.size, block))
            reference = np.maximum(tops, reference)
        live = flat[: self.size]
        np.subtract(logits, np.repeat(reference, block)[: self.size], out=live)
        if self._inverse_temperature != 1.0:
            live *= flat.dtype.type(self._inverse_temperature)
        np.exp(live, out=live)
        flat[self.size :] = 0
        self._weights = flat.reshape(blocks, block)
        self._reference = reference.astype(np.float64)
        self._sums = _chunk_sums(self._weights)
        self.log_blocks = self._log_blocks(slice(None))

    def _log_blocks(self, blocks: slice | Ids) -> Float:
        """Log mass of some blocks, from the sums of their chunks."""
        sums: Float = self._sums[blocks].sum(axis=1)
        log_blocks: Float = np.log(sums)
        log_blocks += self._reference[blocks] * self._inverse_temperature
        return log_blocks

    def _apply(self, mask: Mask) -> None:
        """Take away the weights of all that the mask does not allow; full blocks stay as they are."""
        blocks, block = self._weights.shape
        words = np.zeros(blocks * block >> 5, np.uint32)
        kept = min(mask_words(self.size), mask.size)
        words[:kept] = mask[:kept]
        self._words = words.reshape(blocks, -1)
        touched = np.flatnonzero((self._words != _ALL).any(axis=1))
        if not touched.size:
            return
        part = slice(int(touched[0]), int(touched[-1]) + 1)
        bits = np.unpackbits(self._words[part].view(np.uint8), axis=1, bitorder="little")
        self._weights[part] *= bits
        self._sums[part] = _chunk_sums(self._weights[part])
        self.log_blocks[part] = self._log_blocks(part)
        small = self._sums[touched].sum(axis=1) < _RENEW
        for i in touched[small & self._words[touched].any(axis=1)].tolist():
            self._renew(i)

    def _renew(self, block: int) -> None:
        """Read one block again relative to the maximum of what is left in it."""
        size = self._weights.shape[1]
        start = block * size
        logits = self._logits[start : start + size].astype(np.float64)
        live = np.ones(logits.size, np.bool_)
        if self._words is not None:
            live &= unpack_mask(self._words[block], logits.size)
        live[[t - start for t in self._removed if 0 <= t - start < logits.size]] = False
        logits[~live] = -np.inf
        reference = max(float(logits.max()), _FLOOR)
        self._reference[block] = reference
        weights = np.exp((logits - reference) * self._inverse_temperature)
        self._weights[block, : logits.size] = weights
        here = slice(block, block + 1)
        self._sums[here] = _chunk_sums(self._weights[here])
        self.log_blocks[here] = self._log_blocks(here)

    def log_live(self) -> float:
        """Log of the mass that is left: what is allowed and not removed."""
        return self._log_live

    def share(self, tokens: list[int]) -> float:
        """How much of what is left the tokens hold, none of them removed: from 0 to 1."""
        with np.errstate(all="ignore"):
            logits = self._logits[tokens].astype(np.float64) * self._inverse_temperature
            return float(np.exp(logits - self._log_live).sum())

    @staticmethod
    def fraction(log_part: float, log_whole: float) -> float:
        """exp(log_part - log_whole), and exactly 1 for equal ones."""
        return 1.0 if log_part == log_whole else math.exp(min(log_part - log_whole, 0.0))

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
            return float(-(p * np.maximum(log_p, _FLOOR)).sum())

    def take(self, uniforms: Float) -> Ids:
        """Independent draws from what is left by two uniforms each, block and then token: int64
        [n].

        uniforms: float64 [n, 2] in [0, 1). The row must have mass left.
        """
        if self._index is None:
            self._index = _Index(self.log_blocks, self._sums)
        chunks, shares = self._index.find(uniforms)
        inside = self._weights.reshape(-1, CHUNK)[chunks].cumsum(axis=1, dtype=np.float64)
        # A share below 1 of the last sum lies below that sum: a token of weight 0 is never reached.
        below = inside <= (shares * inside[:, -1])[:, None]
        tokens: Ids = chunks * CHUNK + np.count_nonzero(below, axis=1)
        return tokens

    def remove(self, tokens: list[int]) -> None:
        """Take tokens out of what may be drawn, and sum the touched chunks again."""
        if not tokens:
            return
        if self._shared:
            self._own()
        self._removed.extend(tokens)
        by_chunk = self._weights.reshape(-1, CHUNK)
        self._weights.reshape(-1)[tokens] = 0
        chunks = np.unique(np.asarray(tokens) // CHUNK)
        self._sums.reshape(-1, 1)[chunks] = _chunk_sums(by_chunk[chunks])
        blocks = np.unique(chunks // self._sums.shape[1])
        with np.errstate(all="ignore"):
            self.log_blocks[blocks] = self._log_blocks(blocks)
            for block in blocks[self._sums[blocks].sum(axis=1) < _RENEW].tolist():
                self._renew(block)
            self._log_live = log_sum_exp(self.log_blocks)
        self._index = None

    def _own(self) -> None:
        """Part from the copies before a change."""
        self._weights = self._weights.copy()
        self._reference = self._reference.copy()
        self._sums = self._sums.copy()
        self.log_blocks = self.log_blocks.copy()
        self._shared = False
