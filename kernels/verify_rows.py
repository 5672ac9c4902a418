"""What verification reads and draws: target rows, draft rows and the chances between them."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, unpack_mask
from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.cumulative import cumulative_masses
from midstream.kernels.masked_sampling import NOT_FINITE, NOTHING_ALLOWED, OK
from midstream.kernels.row import Row

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]


class TargetRow:
    """One row of the target: softmax(logits / T) restricted to a mask, in float64.

    temperature 0: all mass on the largest allowed logit, the lowest id of equals; `log_p` and
    `log_weight` are then those of temperature 1.

    status: OK, NOTHING_ALLOWED or NOT_FINITE. log_weight: log Z_allowed - log Z_all, -inf unless
        OK.
    """

    __slots__ = ("_greedy", "_logits", "_mask", "_row", "log_weight", "status")

    def __init__(self, logits: Array, mask: Mask | None, temperature: float) -> None:
        self._row = row = Row(logits, mask, 1.0 / temperature if temperature > 0.0 else 1.0)
        self._logits = logits
        self._mask = mask
        self._greedy: int | None = None
        if not row.finite:
            self.status = NOT_FINITE
        elif row.log_z_allowed == -math.inf:
            self.status = NOTHING_ALLOWED
        else:
            self.status = OK
            if temperature == 0.0:
                self._greedy = _largest(logits, mask)
        self.log_weight = row.log_z_allowed - row.log_z_all if self.status == OK else -math.inf

    def log_p(self, token: int) -> float:
        """Log probability of a token under the whole row, before the mask."""
        return self._row.log_p(token)

    def log_law(self, token: int) -> float:
        """Log probability of a token under the target law; -inf for one that is not allowed."""
        if not self._allows(token):
            return -math.inf
        if self._greedy is not None:
            return 0.0 if token == self._greedy else -math.inf
        return self._row.log_p(token) - self.log_weight

    def law(self) -> Float:
        """The target law: float64 [V]."""
        return self._row.law() if self._greedy is None else point_mass(self._greedy, self._row.size)

    def take(
        self,
        uniforms: Float,  # [2]
    ) -> int:
        """A token of the target law by two uniforms, as `masked_sample` draws it."""
        return int(self._row.take(uniforms[None])[0]) if self._greedy is None else self._greedy

    def _allows(self, token: int) -> bool:
        if not 0 <= token < self._row.size or not self._logits[token] > NO_MASS:
            return False
        if self._mask is None:
            return True
        word = token >> 5
        return word < self._mask.size and bool(int(self._mask[word]) >> (token & 31) & 1)


def _largest(logits: Array, mask: Mask | None) -> int:
    if mask is None:
        return int(np.argmax(logits))
    return int(np.argmax(np.where(unpack_mask(mask, logits.size), logits, -np.inf)))


class DraftRow:
    """The law that drafted tokens of one row were drawn from: softmax(logits / T), or point masses
    on the tokens themselves (logits None, or temperature 0: a deterministic draft).

    usable: False where the row has a NaN, a +inf or no mass: nothing can have been drawn from it.
    """

    __slots__ = ("_row", "usable")

    def __init__(self, logits: Array | None, temperature: float) -> None:
        self._row: Row | None = None
        if logits is not None and temperature > 0.0:
            self._row = Row(logits, None, 1.0 / temperature)
        self.usable = self._row is None or (self._row.finite and self._row.log_z_all > -math.inf)

    @property
    def is_point(self) -> bool:
        """Whether each drafted token stands for a law of its own, all on that token."""
        return self._row is None

    def log_law(self, token: int) -> float:
        """Log probability of having drafted the token."""
        if self._row is None:
            return 0.0
        return self._row.log_p(token) if 0 <= token < self._row.size else -math.inf

    def law(self, token: int, size: int) -> Float:
        """The law that the drafted token was drawn from: float64 [size]."""
        return point_mass(token, size) if self._row is None else self._row.law()


def point_mass(token: int, size: int) -> Float:
    """All mass on one token: float64 [size]; none at all for a token outside the row."""
    law = np.zeros(size)
    if 0 <= token < size:
        law[token] = 1.0
    return law


class Chance(Protocol):
    """The random choices of one verification. `Uniforms` stands behind it in production; a test
    that enumerates verification branches here instead.
    """

    def keeps(self, draft: int, probability: float) -> bool:
        """Whether the drafted token of this index passes its test."""

    def draw(self, row: TargetRow, step: int) -> int:
        """A token of a target row; step: how many such draws were made before."""

    def choose(self, weights: Float) -> int:
        """A token with probability weights[t] / sum(weights). weights: float64 [V], not all 0."""


class Uniforms:
    """Choices made by given uniforms in [0, 1): pair 0 draws the emitted token, pair 1 + i tests
    drafted token i by its first number (or makes draw 1 + i of a target walk by both).
    """

    __slots__ = ("_pairs",)

    def __init__(
        self,
        pairs: Float,  # [K + 1, 2]
    ) -> None:
        self._pairs = pairs

    def keeps(self, draft: int, probability: float) -> bool:
        """See `Chance.keeps`. Strict: a uniform of 0 keeps nothing of probability 0."""
        return bool(self._pairs[1 + draft, 0] < probability)

    def draw(self, row: TargetRow, step: int) -> int:
        """See `Chance.draw`."""
        return row.take(self._pairs[step])

    def choose(self, weights: Float) -> int:
        """See `Chance.choose`. A block by its mass, then a token inside it, as everywhere."""
        size = weights.size
        block = BLOCK if size > BLOCK else size
        count = -(-size // block)
        masses = np.zeros((count, block))
        masses.reshape(-1)[:size] = weights / weights.sum()
        (index,) = cumulative_masses(masses, np.zeros(count), 1)
        return int(index.find(self._pairs[:1])[0][0])
