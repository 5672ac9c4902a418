"""Rows of logits cut into blocks of `BLOCK` tokens, each with its own reference maximum.

So nothing underflows however low the temperature. Each block's numbers depend on that block alone:
rows that are read together are the same, bit for bit, as each by itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask

BLOCK = 2048
"""Tokens a block. Part of the law of a seed:
another value draws other tokens for the same uniforms.
"""

CHUNK = 64
"""Tokens a chunk. In long rows sums are kept for chunks, so that a draw or a removal reads one
chunk and not the block. For speed alone: the same uniforms draw the same token.
"""

LONG = 4 * BLOCK
"""Rows of more tokens than that are long. For speed alone."""

NO_MASS = -1e30
"""Logits down to this have no mass: hosts mask with -inf or with the least finite number."""

LOG_RENEW = math.log(1e-6)
"""A block whose sum falls below this is read again relative to its own live maximum."""

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]


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


class Blocks:
    """The blocks of rows of equal length, one row after another.

    logits: float32 or float64 [R, V]. inverse_temperature: 1 / T, folded in first. products:
        whether what entropies are made of is kept, too.

    weights: [R NB, BLOCK], relative to each block's maximum; a row of one block is not padded.
    parts: what is summed and searched: of long rows their chunks [R NB, BLOCK / CHUNK], of others
        the weights themselves.
    log_reference, log_sums: float64 [R NB]; the log mass of a block is the sum of both.
    products: sums of each block's weights times their logs, float64 [R NB]; None unless asked for.
    bits: what the masks allow, one byte a token, [R NB, BLOCK]; None before `apply`.
    """

    __slots__ = (
        "bits",
        "log_reference",
        "log_sums",
        "parts",
        "products",
        "rows",
        "size",
        "weights",
    )

    def __init__(
        self, logits: Array, inverse_temperature: float, *, products: bool = False
    ) -> None:
        self.rows, self.size = logits.shape
        self.bits: npt.NDArray[np.uint8] | None = None
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
        self.products: Float | None = None
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
        """Take away what masks [R, W] do not allow. Full blocks at both ends stay as they are."""
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
        sums = np.add.reduce(self.parts[part], axis=1)
        self.log_sums[part] = np.log(sums, dtype=np.float64)

    def low(self) -> npt.NDArray[np.int64]:
        """Blocks to be read again: what they allow weighs little beside their maximum."""
        if self.bits is None or np.minimum.reduce(self.log_sums) >= LOG_RENEW:
            return np.empty(0, np.int64)
        return np.flatnonzero((self.log_sums < LOG_RENEW) & self.bits.any(axis=1))
