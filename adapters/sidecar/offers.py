"""What an engine that draws by itself is offered: the allowed tokens, and what the rest weighed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, pack_mask, unpack_mask
from midstream.middleware.finish import why_dead, why_unusable
from midstream.middleware.law import Law
from midstream.middleware.matcher import Matcher, State, fault
from midstream.middleware.sampling import Mask as MaskSampler


@dataclass(frozen=True, slots=True)
class Offer:
    """One row's allowed tokens.

    mask: uint32 [W]. log_weight: log of the share of the law's mass that they hold, so that a token
        drawn in proportion to the law among them is properly weighted; NaN without logits. reason:
        why nothing can be drawn; empty where something can.
    """

    mask: Mask
    log_weight: float
    reason: str = ""

    def copy_allowed(self, logits: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Copy the logits of the allowed tokens into `out`, which holds -inf. Both [V]."""
        np.copyto(out, logits, where=unpack_mask(self.mask, logits.size))


def offers(
    matcher: Matcher,
    states: Sequence[State],
    logits: npt.NDArray[Any] | None,  # [R, V]
    law: Law,
    size: int,
) -> list[Offer]:
    """An offer for each state, whose matcher must have masks.

    logits: float32 or float64, None where only masks are wanted. size: of a row.
    What truncation takes out is not offered either. A fault of the matcher, NaN, and a row that
    allows nothing are reasons, not exceptions.
    """
    return [
        _offer(matcher, state, None if logits is None else logits[i], law, size)
        for i, state in enumerate(states)
    ]


def _offer(
    matcher: Matcher, state: State, logits: npt.NDArray[Any] | None, law: Law, size: int
) -> Offer:
    nothing: Mask = np.zeros((size + 31) >> 5, np.uint32)
    try:
        bits = MaskSampler().restriction(matcher, state, size)
    except Exception as error:  # one request's constraint must not stop the stream
        return Offer(nothing, -math.inf, fault(error))
    if logits is None:
        reason = "" if bits.any() else why_dead(matcher, state, bits, law)
        return Offer(bits, math.nan, reason) if not reason else Offer(nothing, -math.inf, reason)
    row = law.read(logits, bits)
    unusable = why_unusable(row, None, bits)
    if unusable:
        return Offer(nothing, -math.inf, unusable)
    if row.log_z_allowed == -math.inf:
        return Offer(nothing, -math.inf, why_dead(matcher, state, bits, law))
    return Offer(_truncated(logits, bits, law), row.log_z_allowed - row.log_z_all)


def _truncated(logits: npt.NDArray[Any], bits: Mask, law: Law) -> Mask:
    """The mask without what the law's truncation takes out."""
    if not law.truncates:
        return bits
    return pack_mask(unpack_mask(bits, logits.size) & law.survivors(logits, bits))
