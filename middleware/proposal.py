"""Drawing from another row than the target's, and the weight that puts it right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, unpack_mask
from midstream.kernels.row import Row, log_sum_exp
from midstream.middleware.errors import StrategyError
from midstream.middleware.law import Law


@dataclass(frozen=True, slots=True)
class Proposal:
    """A row to draw from in the place of the target's.

    target: the target's row under its law, all tokens. drawn: the row that is drawn from,
        restricted to what may be allowed.
    """

    target: Row
    drawn: Row

    @property
    def finite(self) -> bool:
        """Whether neither row holds NaN or +inf."""
        return self.target.finite and self.drawn.finite

    def covers(self, mask: Mask) -> bool:
        """Whether each token of the mask that the target can give can be drawn."""
        possible = self.target.possible() & unpack_mask(mask, self.target.size)
        return not bool((possible & ~self.drawn.possible()).any())

    def log_ratio(self, ids: list[int]) -> float:
        """log p(ids) - log q(ids), of tokens that count as one symbol and were drawn."""
        p = log_sum_exp(np.array([self.target.log_p(token) for token in ids]))
        return p - log_sum_exp(np.array([self.drawn.log_p(token) for token in ids]))


def propose(logits: npt.NDArray[Any], proposal: npt.NDArray[Any], mask: Mask, law: Law) -> Proposal:
    """Read both rows. Raises StrategyError for a law whose weights a proposal cannot correct."""
    if law.temperature == 0 or not law.proper:
        got = f"one with temperature={law.temperature}, truncation={law.truncation!r}"
        accepted = "none for greedy decoding and for truncation after the mask"
        raise StrategyError("proposal", got, accepted)
    if proposal.shape != logits.shape:
        raise StrategyError("proposal", f"logits {proposal.shape}", f"logits {logits.shape}")
    return Proposal(law.read(logits, None), Row(proposal, mask))
