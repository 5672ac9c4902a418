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
from midstream.kernels.philox import half_open_uniforms, philox_keyed_words
from midstream.middleware.law import Law
from midstream.middleware.random import PURPOSES, StreamSource
from midstream.middleware.sampling import Read

_TOGETHER = 1 << 15
"""Logits that are read before their rows are drawn from: what a processor keeps near."""

_WORDS = 4
"""Random words of a row that are made beforehand: a block of Philox, two draws."""


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
    sources = _sources(rows)
    drawn: dict[int, Record] = {}
    for part in _read(logits, rows, asking):
        for i, read in part:
            row, slot = rows[i].row, rows[i].slot
            drawn[i] = slot.draw(logits[row], asking[i], read, sources[i])
    records.write((each.slot.place(each.output), drawn[i]) for i, each in enumerate(rows))
    return [drawn[i].token for i in range(len(rows))]


def _read(
    logits: npt.NDArray[Any], rows: Sequence[RowOfStep], asking: Sequence[Asking | Nothing]
) -> Iterator[Sequence[tuple[int, Read | None]]]:
    """The rows under their laws, by number, some at a time. None for those without a draw, and
    greedy ones, which are not read.
    """
    groups: dict[Law, dict[int, Bits]] = {}
    for i, (each, asked) in enumerate(zip(rows, asking, strict=True)):
        law = each.slot.plan.law
        if isinstance(asked, Asking) and law.temperature > 0:
            groups.setdefault(law, {})[i] = asked.bits
        else:
            yield [(i, None)]
    together = max(_TOGETHER // logits.shape[1], 1)
    for law, group in groups.items():
        numbers = list(group)
        for begin in range(0, len(numbers), together):
            some = numbers[begin : begin + together]
            bits = [group[i] for i in some]
            found = law.read_rows(_rows_of(logits, [rows[i].row for i in some]), np.stack(bits))
            yield [*zip(some, zip(found, bits, strict=True), strict=True)]


def _rows_of(logits: npt.NDArray[Any], which: Sequence[int]) -> npt.NDArray[Any]:
    """Some rows; not copied where they follow each other, as they mostly do."""
    first = which[0]
    if all(row == first + i for i, row in enumerate(which)):
        return logits[first : first + len(which)]
    return logits[list(which)]


def _sources(rows: Sequence[RowOfStep]) -> list[StreamSource]:
    """The random numbers of each row, the first of them made for all rows at once."""
    streams = [each.slot.stream(each.output) for each in rows]
    keys = [
        np.array([getattr(stream, name) for stream in streams], np.uint64)
        for name in ("seed", "position", "sequence")
    ]
    words = philox_keyed_words(keys[0], keys[1], keys[2], PURPOSES["token"], _WORDS)
    each = zip(streams, half_open_uniforms(words), strict=True)
    return [StreamSource(stream, ahead) for stream, ahead in each]
