"""The rows of a step, drawn together: read, numbered and recorded at little more than the cost of
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.adapters.vllm.records import Record, Records
from midstream.adapters.vllm.slots import Asking, Nothing, Slot
from midstream.kernels.bitmask import Mask as Bits
from midstream.kernels.row import Rows
from midstream.middleware.law import Law
from midstream.middleware.sampling import Mask


@dataclass(frozen=True, slots=True)
class RowOfStep:
    """A row of the step's logits, whose request it is, and its output so far."""

    row: int
    slot: Slot
    output: Sequence[int]


def draw_step(logits: npt.NDArray[Any], rows: Sequence[RowOfStep], records: Records) -> list[int]:
    """The token of each row, recorded before it is returned.

    logits: [rows of the step, V], unscaled, float32 or float64. A row's token is the same in any
    company. A fault of one request's constraint ends that request alone.
    """
    asking = [each.slot.asking(each.output, logits.shape[1]) for each in rows]
    found = dict(_drawn(logits, rows, asking))
    drawn = [found[i] for i in range(len(rows))]
    records.write(
        (each.slot.place(each.output), record) for each, record in zip(rows, drawn, strict=True)
    )
    return [record.token for record in drawn]


def _drawn(
    logits: npt.NDArray[Any], rows: Sequence[RowOfStep], asking: Sequence[Asking | Nothing]
) -> Iterator[tuple[int, Record]]:
    """The record of each row, by number. Rows of one law are read together; greedy ones are not."""
    groups: dict[tuple[Law, bool], list[tuple[int, Bits]]] = {}
    for i, (each, asked) in enumerate(zip(rows, asking, strict=True)):
        law = each.slot.plan.law
        if isinstance(asked, Asking) and law.temperature > 0:
            groups.setdefault((law, each.slot.by_mask), []).append((i, asked.bits))
        else:
            yield i, each.slot.draw(logits[each.row], asked, None, each.output)
    for (law, by_mask), group in groups.items():
        some = _rows_of(logits, [rows[i].row for i, _ in group])
        begin = 0
        for read in law.read_rows(some, np.stack([bits for _, bits in group])):
            part = group[begin : begin + len(read)]
            begin += len(read)
            found = _together(read, [rows[i] for i, _ in part]) if by_mask else [None] * len(read)
            for j, (i, bits) in enumerate(part):
                record, each = found[j], rows[i]
                if record is None:
                    pair = read.row(j), bits
                    record = each.slot.draw(logits[each.row], asking[i], pair, each.output)
                yield i, record


def _together(read: Rows, rows: Sequence[RowOfStep]) -> list[Record | None]:
    """The records of rows that the sampler `mask` draws from; None where it finds no token."""
    uniforms = np.array([each.slot.uniforms(each.output) for each in rows])
    drawn = zip(rows, Mask().draw_rows(read, uniforms[:, :2]), strict=True)
    return [None if found is None else each.slot.record(*found) for each, found in drawn]


def _rows_of(logits: npt.NDArray[Any], which: Sequence[int]) -> npt.NDArray[Any]:
    """Some rows; not copied where they follow each other, as they mostly do."""
    first = which[0]
    if [*which] == [*range(first, first + len(which))]:
        return logits[first : first + len(which)]
    return logits[list(which)]
