"""The rows of a step, read together where their requests have the same law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.adapters.vllm.slots import Asking, Nothing, Slot
from midstream.kernels.bitmask import Mask as Bits
from midstream.middleware.law import Law
from midstream.middleware.sampling import Read


@dataclass(frozen=True, slots=True)
class RowOfStep:
    """A row of the step's logits, whose request it is, and its output so far."""

    row: int
    slot: Slot
    output: Sequence[int]


def draw_step(logits: npt.NDArray[Any], rows: Sequence[RowOfStep]) -> list[int]:
    """The token of each row, recorded before it is returned. Never raises.

    logits: [rows of the step, V], unscaled, float32 or float64. A row's token is the same in any
    company.
    """
    asking = [each.slot.asking(each.output, logits.shape[1]) for each in rows]
    reads = _read(logits, rows, asking)
    return [
        each.slot.draw(logits[each.row], each.output, asked, read)
        for each, asked, read in zip(rows, asking, reads, strict=True)
    ]


def _read(
    logits: npt.NDArray[Any], rows: Sequence[RowOfStep], asking: Sequence[Asking | Nothing]
) -> list[Read | None]:
    """The rows under their laws. None for those without a draw, and greedy ones, which are not
    read.
    """
    groups: dict[Law, dict[int, Bits]] = {}
    for i, (each, asked) in enumerate(zip(rows, asking, strict=True)):
        law = each.slot.plan.law
        if isinstance(asked, Asking) and law.temperature > 0:
            groups.setdefault(law, {})[i] = asked.bits
    reads: list[Read | None] = [None] * len(rows)
    for law, group in groups.items():
        some = logits[[rows[i].row for i in group]]
        found = law.read_rows(some, np.stack(list(group.values())))
        for (i, bits), row in zip(group.items(), found, strict=True):
            reads[i] = row, bits
    return reads
