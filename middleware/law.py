"""The law of the next token before any constraint:
temperature and truncation, which are part of the target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask
from midstream.kernels.law_rows import read_truncated, survivors, truncated
from midstream.kernels.row import Row, Rows, read_rows
from midstream.middleware.errors import StrategyError

TRUNCATIONS = (
    "'target' (the truncated law is the target, weights are proper for it, and a row that "
    "truncation leaves with nothing allowed is dead) or 'after_mask' (mask first, then truncate, "
    "as servers do: lossy, weights not proper)"
)


@dataclass(frozen=True, slots=True)
class Law:
    """softmax(logits / temperature), truncated by top-k, then top-p, then min-p.

    temperature: 0 is greedy: mode seeking, weights are not proper.
    Greedy decoding and truncation look at ids one by one, as hosts do: end-of-sequence ids are one
        symbol for draws and weights only.
    truncation: which of two laws a top-k, top-p or min-p means; must be said where one of them is
        given.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    truncation: Literal["target", "after_mask"] | None = None

    def __post_init__(self) -> None:
        if not (self.temperature == 0 or 1e-6 <= self.temperature < math.inf):
            accepted = "0 (greedy), or a finite number from 1e-6 on"
            raise StrategyError("temperature", self.temperature, accepted)
        if self.top_k < 0:
            raise StrategyError("top_k", self.top_k, "an integer, at least 0 (0 is off)")
        if not 0 < self.top_p <= 1:
            raise StrategyError("top_p", self.top_p, "a number above 0, at most 1 (1 is off)")
        if not 0 <= self.min_p < 1:
            raise StrategyError("min_p", self.min_p, "a number at least 0, below 1 (0 is off)")
        if self.truncation not in (None, "target", "after_mask"):
            raise StrategyError("truncation", self.truncation, TRUNCATIONS)
        if self.truncates and self.truncation is None:
            given = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
            raise StrategyError("truncation", f"None with {given}", TRUNCATIONS)

    @property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p acts. Greedy decoding has nothing to truncate."""
        given = self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0
        return given and self.temperature > 0

    @property
    def proper(self) -> bool:
        """Whether weights are proper: not for greedy decoding,
        not for truncation after the mask.
        """
        return self.temperature > 0 and not (self.truncates and self.truncation == "after_mask")

    @property
    def inverse_temperature(self) -> float:
        """1 / T; 1 where T is 0, whose masses are reported at T = 1."""
        return 1.0 / self.temperature if self.temperature > 0 else 1.0

    def read(self, logits: npt.NDArray[Any], mask: Mask | None) -> Row:
        """The row under this law, restricted to a mask.
        Its `log_z_all` is the mass of the target law.
        """
        if not self.truncates:
            return Row(logits, mask, self.inverse_temperature)
        return read_truncated(logits, mask, *self._options)[0]

    def survivors(self, logits: npt.NDArray[Any], mask: Mask) -> npt.NDArray[np.bool_]:
        """Which tokens truncation keeps, of a law that truncates: bool [V]."""
        return survivors(logits, mask, *self._options)

    @property
    def _options(self) -> tuple[float, int, float, float, Literal["target", "after_mask"] | None]:
        return self.temperature, self.top_k, self.top_p, self.min_p, self.truncation

    def read_rows(self, logits: npt.NDArray[Any], masks: Mask) -> Iterator[Rows]:
        """`read` of each row of [R, V] under its mask of [R, W]: the same rows, in groups."""
        if self.truncates:
            pairs = zip(logits, masks, strict=True)
            each = [truncated(row, mask, *self._options) for row, mask in pairs]
            logits = np.stack([row for row, _ in each])
            masks = np.stack([mask for _, mask in each if mask is not None])
        return read_rows(logits, masks, self.inverse_temperature)


PLAIN = Law()
"""The model's own law."""
