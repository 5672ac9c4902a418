"""One row of logits, read once: masses by blocks, draws from them, and removal of what was drawn.

This is the numpy form of the two-kernel factorisation: a draw chooses a block by its mass and then
a token inside it. Exact because P(block) P(token | block) = p(token | allowed).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask
from midstream.kernels.blocks import (
    BLOCK,
    CHUNK,
    LOG_RENEW,
    LONG,
    NO_MASS,
    Array,
    Blocks,
    Float,
    chunk_sums,
    log_sum_exp,
)
from midstream.kernels.cumulative import CumulativeMass, cumulative_masses

__all__ = ["BLOCK", "NO_MASS", "Row", "log_sum_exp", "read_rows"]

_TOGETHER = 1 << 15  # numbers read at once: what a processor keeps near while they are gone over

Ids = npt.NDArray[np.int64]


class Row:
    """What is left of one row of logits: draws, exact masses, and removal.

    logits: float32 or float64 [V], not changed; any -inf is a token of no mass. NaN or +inf:
        `finite` is False.
    mask: which tokens may be drawn at all (uint32 [W]), None for all of them.
    inverse_temperature: 1 / T, folded in before anything else.
    with_entropy: whether `entropy` is made, for a quarter of the cost of the rest.

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
        "entropy",
        "finite",
        "log_blocks",
        "log_z_all",
        "log_z_allowed",
        "size",
    )

    size: int
    finite: bool
    log_z_all: float
    log_z_allowed: float
    entropy: float  # of the whole row, in nats, within 1e-5 in float32; NaN without mass or unasked
    log_blocks: Float  # [NB], the log mass that is left of each block
    _shared: bool

    def __init__(
        self,
        logits: Array,
        mask: Mask | None = None,
        inverse_temperature: float = 1.0,
        *,
        with_entropy: bool = False,
    ) -> None:
        masks = None if mask is None else mask[None]
        with np.errstate(all="ignore"):
            _read([self], logits[None], masks, inverse_temperature, with_entropy)

    def copy(self) -> Row:
        """The same row as it is now, from which draws and removals go on apart."""
        other = object.__new__(Row)
        for name in Row.__slots__:
            setattr(other, name, getattr(self, name))
        other._removed = list(self._removed)
        self._shared = other._shared = True
        return other

    def _begin(self, logits: Array, inverse_temperature: float, blocks: Blocks, i: int) -> None:
        """Stand on row i of blocks that were read and masked."""
        count = len(blocks.weights) // blocks.rows
        here = slice(i * count, (i + 1) * count)
        self.size = logits.size
        self._logits = logits
        self._inverse_temperature = inverse_temperature
        self._weights = blocks.weights[here]
        self._parts = blocks.parts[here]
        self._bits = None if blocks.bits is None else blocks.bits[here]
        self._log_reference = blocks.log_reference[here]
        self._log_sums = blocks.log_sums[here]
        self.log_blocks = self._log_sums + self._log_reference
        self._removed: list[int] = []
        self._index: CumulativeMass | None = None
        self._shared = False

    def _sum_again(self, blocks: Ids) -> None:
        """The masses of some blocks, after a change of their weights."""
        sums = np.add.reduce(self._parts[blocks], axis=1)
        self._log_sums[blocks] = np.log(sums, dtype=np.float64)
        self.log_blocks[blocks] = self._log_sums[blocks] + self._log_reference[blocks]

    def _renew(self, blocks: Ids) -> None:
        """Read blocks again, each relative to the maximum of what is left in it."""
        width = self._weights.shape[1]
        tokens = (blocks[:, None] * width + np.arange(width)).reshape(-1)
        live = tokens < self.size
        if self._bits is not None:
            live &= self._bits[blocks].reshape(-1).view(np.bool_)
        if self._removed:
            live &= np.isin(tokens, self._removed, invert=True)
        tokens = tokens[live]
        counts = np.count_nonzero(live.reshape(-1, width), axis=1)
        blocks, counts = blocks[counts > 0], counts[counts > 0]
        if not blocks.size:
            return
        logits = self._logits[tokens].astype(np.float64)
        tops = np.maximum.reduceat(logits, np.cumsum(counts) - counts)
        reference = np.maximum(tops, NO_MASS)
        logits -= np.repeat(reference, counts)
        self._weights.reshape(-1)[tokens] = np.exp(logits * self._inverse_temperature)
        if self.size > LONG:
            self._parts[blocks] = chunk_sums(self._weights[blocks])
        self._log_reference[blocks] = reference * self._inverse_temperature
        self._sum_again(blocks)

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

    def take(self, uniforms: Float) -> Ids:
        """Independent draws from what is left by two uniforms each, block and then token: int64
        [n].

        uniforms: float64 [n, 2] in [0, 1). The row must have mass left.
        """
        if self._index is None:
            log_scale = self._log_reference - self._log_live
            (self._index,) = cumulative_masses(self._parts, log_scale, 1)
        parts, points = self._index.find(uniforms)
        if self.size <= LONG:
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
        if self.size > LONG:
            chunks = list({token // CHUNK for token in tokens})
            weights = self._weights.reshape(-1, CHUNK)[chunks]
            self._parts.reshape(-1, 1)[chunks] = chunk_sums(weights)
        width = self._weights.shape[1]
        blocks = np.array(list({token // width for token in tokens}))
        with np.errstate(all="ignore"):
            self._sum_again(blocks)
            low = blocks[self._log_sums[blocks] < LOG_RENEW]
            if low.size:
                self._renew(low)
            self._log_live = log_sum_exp(self.log_blocks)
        self._index = None

    def _part_from_copies(self) -> None:
        self._weights = self._weights.copy()
        self._parts = self._parts.copy() if self.size > LONG else self._weights
        self._log_reference = self._log_reference.copy()
        self._log_sums = self._log_sums.copy()
        self.log_blocks = self.log_blocks.copy()
        self._shared = False


def read_rows(
    logits: Array,  # [R, V]
    masks: Mask | None = None,  # [R, W]
    inverse_temperature: float = 1.0,
    *,
    with_entropy: bool = False,
) -> list[Row]:
    """Rows read together: each the same, bit for bit, as `Row` of it, at little more than the cost
    of one where they are short.
    """
    rows = [object.__new__(Row) for _ in logits]
    size = max(_TOGETHER // max(logits.shape[1], 1), 1)
    with np.errstate(all="ignore"):
        for begin in range(0, len(rows), size):
            part = slice(begin, begin + size)
            some = None if masks is None else masks[part]
            _read(rows[part], logits[part], some, inverse_temperature, with_entropy)
    return rows


def _read(
    rows: list[Row],
    logits: Array,
    masks: Mask | None,
    inverse_temperature: float,
    with_entropy: bool,
) -> None:
    """Make rows out of their logits [R, V], one or many."""
    blocks = Blocks(logits, inverse_temperature, products=with_entropy)
    log_z_all = log_z_allowed = blocks.log_z()
    entropies = blocks.entropies(log_z_all) if with_entropy else [math.nan] * len(rows)
    if masks is not None:
        blocks.apply(masks)
        log_z_allowed = blocks.log_z()
    for i, row in enumerate(rows):
        row._begin(logits[i], inverse_temperature, blocks, i)
        row.log_z_all = log_z_all[i]
        row.entropy = entropies[i]
        row.finite = row.log_z_all < math.inf  # False for a NaN too
        row.log_z_allowed = row._log_live = log_z_allowed[i]
    count = len(blocks.weights) // len(rows)
    low = blocks.low()
    for i in set((low // count).tolist()):
        rows[i]._renew(low[low // count == i] - i * count)
        rows[i].log_z_allowed = rows[i]._log_live = log_sum_exp(rows[i].log_blocks)
    if len(rows) > 1:
        live = np.repeat([row._log_live for row in rows], count)
        indices = cumulative_masses(blocks.parts, blocks.log_reference - live, len(rows))
        for row, index in zip(rows, indices, strict=True):
            row._index = index
