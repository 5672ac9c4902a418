"""The rows of many requests in one forward pass of a transformers model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from midstream.adapters.sidecar.forwards import Advance, Logits, Prompt, Sequences
from midstream.adapters.sidecar.reading import PaddedReading, together
from midstream.adapters.sidecar.slots import Slots
from midstream.adapters.transformers import TransformersHost
from midstream.middleware.host import logits_on_host


class SharedRows:
    """`Forwards` for a model whose layers all attend to the whole text.

    One pass is over the rows that go on, whatever their lengths; the others wait in their slots
    and cost nothing. A row's logits are those of `TransformersHost`, but for the rounding of
    matrix kernels whose order of summing depends on the shape.
    """

    def __init__(self, host: TransformersHost) -> None:
        self._host = host
        self._slots = Slots()
        self._live: dict[Sequences, None] = {}  # in the order that they joined
        self._used = 0  # slots that may hold something, the first ones
        self._longest = 0  # columns that may hold something

    @property
    def bytes(self) -> int:
        """Memory for the keys and values of all rows."""
        return self._slots.bytes

    def together(self, waiting: Sequence[Prompt]) -> int:
        """See `Forwards.together`."""
        return together(waiting)

    def begin(self, prompts: Sequence[Prompt]) -> PaddedReading:
        """See `Forwards.begin`."""
        return PaddedReading(self._host, prompts)

    def join(self, reading: PaddedReading) -> list[tuple[Sequences, Logits]]:
        """See `Forwards.join`."""
        assert reading.logits is not None
        logits = logits_on_host(reading.logits)
        longest = max(self._longest, *reading.lengths)
        self._slots.fit(self._used + len(reading.rows), longest + 1, reading.cache)
        self._longest = longest
        by_length: dict[int, tuple[list[int], list[int]]] = {}
        joined = []
        for row, length in zip(reading.rows, reading.lengths, strict=True):
            sequences = Sequences(self._used, length)
            to, of = by_length.setdefault(length, ([], []))
            to.append(self._used)
            of.append(row)
            self._live[sequences] = None
            self._used += 1
            joined.append((sequences, logits[row : row + 1]))
        for length, (to, of) in by_length.items():
            self._slots.put(to, reading.cache, of, length)
        return joined

    def leave(self, sequences: Sequences) -> None:
        """See `Forwards.leave`."""
        self._live.pop(sequences, None)

    def reset(self) -> None:
        """See `Forwards.reset`."""
        self._live.clear()
        self._used = self._longest = 0
        self._slots.fit(0, 0)

    def advance(self, advances: Sequence[Advance]) -> list[Logits]:
        """See `Forwards.advance`."""
        self._arrange(advances)
        if not advances:
            return []
        count = sum(len(each.tokens) for each in advances)
        ids, ends = [0] * count, [0] * count
        for each in advances:
            for slot, token in zip(each.sequences.slots, each.tokens, strict=True):
                ids[slot] = token
                ends[slot] = each.sequences.length
            each.sequences.length += 1
        columns = max(ends) + 1
        device = self._host.model.device
        at = torch.tensor(ends, device=device)
        mask = (torch.arange(columns, device=device) <= at[:, None]).long()
        self._slots.window.move(at, columns)
        tokens = torch.tensor(ids, device=device)[:, None]
        read = self._host.forward(tokens, mask, at[:, None], self._slots.cache())
        logits = logits_on_host(read)
        return [_rows(logits, each.sequences.slots) for each in advances]

    def _arrange(self, advances: Sequence[Advance]) -> None:
        """Those that go on into the first slots, those that wait behind them, and nothing else."""
        going = {each.sequences for each in advances}
        waiting = [each for each in self._live if each not in going]
        places, sources = _placed(
            [each.sequences.slots[parent] for each in advances for parent in each.parents],
            [slot for each in waiting for slot in each.slots],
        )
        at = iter(places)
        for each in advances:
            each.sequences.slots = [next(at) for _ in each.parents]
        for sequences in waiting:
            sequences.slots = [next(at) for _ in sequences.slots]
        before, self._used = self._used, len(sources)
        if before or sources:
            self._slots.fit(max(before, self._used), self._longest)
            self._slots.rearrange(sources, before, self._longest)
        grown = (each.length + (each in going) for each in self._live)
        self._longest = max(grown, default=0)
        self._slots.fit(self._used, self._longest)


def _placed(going: Sequence[int], waiting: Sequence[int]) -> tuple[list[int], list[int]]:
    """Where the rows go, given the slot that each comes from: as many as possible stay.

    The slot of each row, and for each slot the one that its row comes from.
    """
    count = len(going) + len(waiting)
    places, sources = [-1] * count, [-1] * count
    for begin, rows in ((0, going), (len(going), waiting)):
        slots = range(begin, begin + len(rows))
        for row, source in enumerate(rows, begin):
            if source in slots and sources[source] < 0:
                places[row] = sources[source] = source
        free = iter([slot for slot in slots if sources[slot] < 0])
        for row, source in enumerate(rows, begin):
            if places[row] < 0:
                places[row] = next(free)
                sources[places[row]] = source
    return places, sources


def _rows(logits: Logits, slots: Sequence[int]) -> Logits:
    """Some rows; those that lie side by side are not copied."""
    first = slots[0]
    if list(slots) == list(range(first, first + len(slots))):
        return logits[first : first + len(slots)]
    return logits[slots]
