"""One row of logits, read once: masses by blocks, draws from them, and removal of what was drawn.

This is the numpy form of the two-kernel factorisation: a draw chooses a block by its mass and then
a token inside it. Exact because P(block) P(token | block) = p(token | allowed).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask
from midstream.kernels.blocks import (
    BLOCK,
    CHUNK,
    NO_MASS,
    Array,
    Blocks,
    Float,
    inside,
    log_sum_exp,
    searched,
)
from midstream.kernels.cumulative import (
    CumulativeMass,
    cumulative_ends,
    cumulative_masses,
    find_each,
)

__all__ = ["BLOCK", "NO_MASS", "Row", "Rows", "log_sum_exp", "read_rows"]

_TOGETHER = 1 << 16  # numbers read at once: what a processor keeps near while they are gone over

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
        "_blocks",
        "_index",
        "_inverse_temperature",
        "_log_live",
        "_logits",
        "_removed",
        "_shared",
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
    _logits: Array
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
        self._begin(Rows(logits[None], masks, inverse_temperature, with_entropy=with_entropy), 0)

    def copy(self) -> Row:
        """The same row as it is now, from which draws and removals go on apart."""
        other = object.__new__(Row)
        for name in Row.__slots__:
            setattr(other, name, getattr(self, name))
        other._removed = list(self._removed)
        self._shared = other._shared = True
        return other

    def _begin(self, rows: Rows, i: int) -> None:
        """Stand on row i of rows that were read."""
        self._blocks = rows.blocks.part(i)
        self._logits = rows.blocks.logits[i]
        self.size = self._logits.size
        self._inverse_temperature = rows.blocks.inverse_temperature
        self.log_blocks = self._blocks.log_sums + self._blocks.log_reference
        self._removed: list[int] = []
        self._index: CumulativeMass | None = None
        self._shared = False
        self.log_z_all = rows.log_z_all[i]
        self.entropy = rows.entropies[i]
        self.finite = self.log_z_all < math.inf  # False for a NaN too
        self.log_z_allowed = self._log_live = rows.log_z_allowed[i]

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
            weights = self._blocks.weights.astype(np.float64)
            share = weights / weights.sum(axis=1, keepdims=True)
            share[scale == 0.0] = 0.0
            law: Float = (share * scale[:, None]).reshape(-1)[: self.size]
            return law

    def take(self, uniforms: Float) -> Ids:
        """Independent draws from what is left by two uniforms each, block and then token: int64
        [n].

        uniforms: float64 [n, 2] in [0, 1). The row must have mass left.
        """
        blocks = self._blocks
        if self._index is None:
            log_scale = blocks.log_reference - self._log_live
            parts = searched(blocks.weights, blocks.parts)
            (self._index,) = cumulative_masses(parts, log_scale, 1)
        parts, points = self._index.find(uniforms)
        if blocks.weights.shape[1] < BLOCK:
            return parts
        tokens: Ids = parts * CHUNK
        return tokens + inside(blocks.weights, parts, self._index.shares(parts, points))

    def remove(self, tokens: list[int]) -> None:
        """Take tokens out of what may be drawn, and sum again what they stood in."""
        if not tokens:
            return
        if self._shared:
            self._blocks = self._blocks.copy()
            self._shared = False
        self._removed.extend(tokens)
        with np.errstate(all="ignore"):
            self._blocks.remove(tokens, self._removed)
            self.log_blocks = self._blocks.log_sums + self._blocks.log_reference
            self._log_live = log_sum_exp(self.log_blocks)
        self._index = None


class Rows:
    """Rows of logits [R, V] read together, under masks [R, W]: each the same, bit for bit, as `Row`
    of it, at little more than the cost of one where they are short.

    log_z_all, log_z_allowed, entropies: as of `Row`, one of each row; log_z_all is not below
    infinity where a row holds NaN or +inf.
    """

    __slots__ = ("blocks", "entropies", "log_z_all", "log_z_allowed")

    def __init__(
        self,
        logits: Array,
        masks: Mask | None = None,
        inverse_temperature: float = 1.0,
        *,
        with_entropy: bool = False,
    ) -> None:
        with np.errstate(all="ignore"):
            blocks = self.blocks = Blocks(logits, inverse_temperature, products=with_entropy)
            self.log_z_all = self.log_z_allowed = blocks.log_z()
            none = [math.nan] * len(logits)
            self.entropies = blocks.entropies(self.log_z_all) if with_entropy else none
            if masks is not None:
                blocks.apply(masks)
                self.log_z_allowed = blocks.log_z()

    def __len__(self) -> int:
        return self.blocks.rows

    def __iter__(self) -> Iterator[Row]:
        return (self.row(i) for i in range(len(self)))

    def row(self, i: int) -> Row:
        """Row i by itself, asked for once: what it removes is gone here, too."""
        row = object.__new__(Row)
        row._begin(self, i)
        return row

    def take(self, uniforms: Float) -> Ids:
        """One draw from each row: the token that its `take` draws by uniforms [R, 2]: int64 [R].

        Any number for a row without mass.
        """
        blocks = self.blocks
        count = len(blocks.weights) // blocks.rows
        with np.errstate(all="ignore"):
            log_scale = blocks.log_reference - np.repeat(self.log_z_allowed, count)
            ends = cumulative_ends(searched(blocks.weights, blocks.parts), log_scale, blocks.rows)
            parts, shares = find_each(ends, count, uniforms)
        if blocks.weights.shape[1] < BLOCK:
            return parts
        chunks = parts + np.arange(len(self)) * (blocks.weights.size // (len(self) * CHUNK))
        tokens: Ids = parts * CHUNK
        return tokens + inside(blocks.weights, chunks, shares)


def read_rows(
    logits: Array,  # [R, V]
    masks: Mask | None = None,  # [R, W]
    inverse_temperature: float = 1.0,
    *,
    with_entropy: bool = False,
) -> Iterator[Rows]:
    """`Rows` of many, in order: each group no more than a processor keeps near."""
    size = max(_TOGETHER // max(logits.shape[1], 1), 1)
    for begin in range(0, len(logits), size):
        part = slice(begin, begin + size)
        some = None if masks is None else masks[part]
        yield Rows(logits[part], some, inverse_temperature, with_entropy=with_entropy)
