"""Rows of logits cut into blocks of `BLOCK` tokens, each with its own reference maximum.

So nothing underflows however low the temperature. Each block's numbers depend on that block alone:
rows that are read together are the same, bit for bit, as each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask

BLOCK = 2048
"""Tokens a block. Part of the law of a seed:
another value draws other tokens for the same uniforms.
"""

CHUNK = 64
"""Tokens a chunk. Where blocks are whole a draw searches chunks first, and then one of them. In
long rows sums are kept for chunks, so that a removal reads one chunk and not the block. For speed
alone: the same uniforms draw the same token.
"""

LONG = 4 * BLOCK
"""Rows of more tokens than that are long: sums of their blocks are made of those of chunks."""

NO_MASS = -1e30
"""Logits down to this have no mass: hosts mask with -inf or with the least finite number."""

LOG_RENEW = math.log(1e-6)
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


def chunk_sums(weights: Array) -> Float:
    """Sums of the chunks of [n, k CHUNK], or of [k CHUNK]: float64 [n, k] or [k]."""
    chunks = weights.reshape(*weights.shape[:-1], weights.shape[-1] // CHUNK, CHUNK)
    # A fifth of the time of `sum`, on an axis as short as this one.
    sums: Float = np.einsum("...i->...", chunks).astype(np.float64)
    return sums


def searched(weights: Array, parts: Array) -> Array:
    """Sums [n, k] of what a draw of blocks [n, BLOCK] or [n, V] searches: chunks of whole blocks,
    else tokens.

    Of rows that are not long they are made in float64: what is drawn is what a sum of all tokens
    in their order would draw.
    """
    if parts is not weights or weights.shape[1] < BLOCK:
        return parts
    chunks = weights.reshape(len(weights), BLOCK // CHUNK, CHUNK)
    sums: Float = np.einsum("...i->...", chunks, dtype=np.float64, casting="safe")
    return sums


def inside(weights: Array, parts: Ids, shares: Float) -> Ids:
    """The place in its chunk that each draw falls on, behind a share below 1 of the chunk's mass.

    weights: [n, BLOCK]. parts: chunks, counted from the first block on.
    """
    sums = weights.reshape(-1, CHUNK)[parts].astype(np.float64).cumsum(axis=1)
    # A share below 1 of the last sum lies below that sum: a token of weight 0 is never reached.
    places: Ids = (sums <= (shares * sums[:, -1])[:, None]).sum(axis=1)
    return places


class Blocks:
    """The blocks of rows of equal length, one row after another.

    logits: float32 or float64 [R, V]. inverse_temperature: 1 / T, folded in first. products:
        whether what entropies are made of is kept, too.

    weights: [R NB, BLOCK], relative to each block's maximum; a row of one block is not padded.
    parts: what is summed: of long rows their chunks [R NB, BLOCK / CHUNK], of others the weights
        themselves.
    log_reference, log_sums: float64 [R NB]; the log mass of a block is the sum of both.
    products: sums of each block's weights times their logs, float64 [R NB]; None unless asked for.
    bits: what the masks allow, one byte a token, [R NB, BLOCK]; None before `apply`.
    """

    __slots__ = (
        "bits",
        "inverse_temperature",
        "log_reference",
        "log_sums",
        "logits",
        "parts",
        "products",
        "rows",
        "size",
        "weights",
    )

    rows: int
    size: int
    logits: Array
    bits: npt.NDArray[np.uint8] | None
    products: Float | None

    def __init__(
        self, logits: Array, inverse_temperature: float, *, products: bool = False
    ) -> None:
        self.rows, self.size = logits.shape
        self.logits, self.inverse_temperature = logits, inverse_temperature
        self.bits = None
        block = BLOCK if self.size > BLOCK else max(self.size, 1)
        padded = max(-(-self.size // block), 1) * block
        if padded > self.size:
            whole = np.empty((self.rows, padded), logits.dtype)
            whole[:, : self.size] = logits
            whole[:, self.size :] = -np.inf
            logits = whole
        weights = logits.reshape(-1, block)
        reference = np.maximum(np.maximum.reduce(weights, axis=1), NO_MASS)
        weights = weights - reference[:, None]
        if inverse_temperature != 1.0:
            weights *= weights.dtype.type(inverse_temperature)
        # The floor keeps 0 * -inf from becoming a NaN.
        logs = np.maximum(weights, -1000.0) if products else None
        np.exp(weights, out=weights)
        self.products = None
        if logs is not None:
            self.products = np.einsum("ij,ij->i", weights, logs).astype(np.float64)
        self.weights = weights
        self.parts = chunk_sums(weights) if self.size > LONG else weights
        self.log_reference = reference.astype(np.float64) * inverse_temperature
        self.log_sums = np.log(np.add.reduce(self.parts, axis=1), dtype=np.float64)

    def log_z(self) -> list[float]:
        """Log of the mass of each row."""
        blocks = (self.log_sums + self.log_reference).reshape(self.rows, -1)
        if blocks.shape[1] == 1:
            alone: list[float] = blocks[:, 0].tolist()
            return alone
        tops = np.maximum.reduce(blocks, axis=1)
        sums = np.add.reduce(np.exp(blocks - tops[:, None]), axis=1)
        each = zip(tops.tolist(), sums.tolist(), strict=True)
        return [top + math.log(total) if math.isfinite(top) else top for top, total in each]

    def entropies(self, log_z: list[float]) -> list[float]:
        """Entropy in nats of rows of that log mass, before `apply`; NaN where there is no mass."""
        assert self.products is not None
        shares = np.exp(self.log_reference.reshape(self.rows, -1) - np.array(log_z)[:, None])
        products = self.products + np.exp(self.log_sums) * self.log_reference
        means = (shares * products.reshape(self.rows, -1)).sum(axis=1)
        entropies: list[float] = (log_z - means).tolist()
        return entropies

    def apply(self, masks: Mask) -> None:
        """Take away what masks [R, W] do not allow. Full blocks at both ends stay as they are, and
        those of which little is left are read again.
        """
        count = self.weights.size // self.rows
        if not masks.shape[1]:  # what numpy unpacks of no words is not initialised
            masks = np.zeros((self.rows, 1), np.uint32)
        as_bytes = np.ascontiguousarray(masks).view(np.uint8)
        unpacked = np.unpackbits(as_bytes, axis=1, bitorder="little", count=count)
        self.bits = bits = unpacked.reshape(self.weights.shape)
        part = slice(None)
        if self.size > LONG:
            partial = np.flatnonzero(~bits.view(np.bool_).all(axis=1))
            part = slice(int(partial[0]), int(partial[-1]) + 1) if partial.size else slice(0)
        self.weights[part] *= bits[part]
        if self.size > LONG:
            self.parts[part] = chunk_sums(self.weights[part])
        self._sum(part)
        low = np.flatnonzero(self.log_sums < LOG_RENEW)
        if low.size:
            self._renew(low)

    def part(self, i: int) -> Blocks:
        """Row i, a view."""
        one = object.__new__(Blocks)
        count = len(self.weights) // self.rows
        here = slice(i * count, (i + 1) * count)
        one.rows, one.size = 1, self.size
        one.logits, one.inverse_temperature = self.logits[i : i + 1], self.inverse_temperature
        one.weights = self.weights[here]
        one.parts = self.parts[here] if self.size > LONG else one.weights
        one.bits = None if self.bits is None else self.bits[here]
        one.log_reference, one.log_sums = self.log_reference[here], self.log_sums[here]
        one.products = None
        return one

    def copy(self) -> Blocks:
        """A single row's, which others may then be removed from."""
        other = self.part(0)
        other.weights = self.weights.copy()
        other.parts = self.parts.copy() if self.size > LONG else other.weights
        other.log_reference, other.log_sums = self.log_reference.copy(), self.log_sums.copy()
        return other

    def remove(self, tokens: list[int], removed: list[int]) -> None:
        """Take tokens out of a single row. removed: they, and all that were taken out before."""
        self.weights.reshape(-1)[tokens] = 0
        if self.size > LONG:
            chunks = list({token // CHUNK for token in tokens})
            weights = self.weights.reshape(-1, CHUNK)[chunks]
            self.parts.reshape(-1, 1)[chunks] = chunk_sums(weights)
        width = self.weights.shape[1]
        blocks = np.array(list({token // width for token in tokens}))
        self._sum(blocks)
        low = blocks[self.log_sums[blocks] < LOG_RENEW]
        if low.size:
            self._renew(low, removed)

    def _sum(self, blocks: Ids | slice) -> None:
        """The masses of some blocks, after a change of their weights."""
        self.log_sums[blocks] = np.log(np.add.reduce(self.parts[blocks], axis=1), dtype=np.float64)

    def _renew(self, blocks: Ids, removed: Sequence[int] = ()) -> None:
        """Read blocks again, each relative to the maximum of what is left in it."""
        width = self.weights.shape[1]
        every = np.ones((len(blocks), width), np.bool_)
        held, places = np.nonzero(every if self.bits is None else self.bits[blocks])
        rows, firsts = np.divmod(blocks, len(self.weights) // self.rows)
        tokens = firsts[held] * width + places
        live = tokens < self.size
        if removed:
            live &= np.isin(tokens, removed, invert=True)
        held, tokens = held[live], tokens[live]
        if not held.size:
            return
        logits = self.logits[rows[held], tokens].astype(np.float64)
        counts = np.bincount(held, minlength=len(blocks))
        blocks, counts = blocks[counts > 0], counts[counts > 0]
        tops = np.maximum.reduceat(logits, np.cumsum(counts) - counts)
        reference = np.maximum(tops, NO_MASS)
        logits -= np.repeat(reference, counts)
        weights = np.exp(logits * self.inverse_temperature)
        self.weights[np.repeat(blocks, counts), tokens % width] = weights
        if self.size > LONG:
            self.parts[blocks] = chunk_sums(self.weights[blocks])
        self.log_reference[blocks] = reference * self.inverse_temperature
        self._sum(blocks)
