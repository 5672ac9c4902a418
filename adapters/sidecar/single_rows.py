"""One request a forward pass, for models whose cache cannot hold rows of unequal length."""

from __future__ import annotations

from collections.abc import Sequence

from midstream.adapters.sidecar.forwards import Advance, Logits, Prompt, Sequences
from midstream.adapters.transformers import TransformersHost, TransformersRows
from midstream.middleware.host import logits_on_host


class SingleReading:
    """A prompt, read in one go. rows: of the host."""

    def __init__(self, rows: TransformersRows, length: int) -> None:
        self.rows = rows
        self.length = length

    def read(self) -> bool:
        """Read it."""
        _ = self.rows.logits
        return True


class SingleRows:
    """`Forwards` by the rows of a `TransformersHost`, whatever its model is."""

    def __init__(self, host: TransformersHost) -> None:
        self._host = host
        self._live: dict[Sequences, TransformersRows] = {}

    def together(self, waiting: Sequence[Prompt]) -> int:
        """See `Forwards.together`."""
        return 1

    def begin(self, prompts: Sequence[Prompt]) -> SingleReading:
        """See `Forwards.begin`."""
        (prompt,) = prompts
        return SingleReading(self._host.start([prompt]), len(prompt))

    def join(self, reading: SingleReading) -> list[tuple[Sequences, Logits]]:
        """See `Forwards.join`."""
        sequences = Sequences(0, reading.length)
        self._live[sequences] = reading.rows
        return [(sequences, logits_on_host(reading.rows.logits))]

    def leave(self, sequences: Sequences) -> None:
        """See `Forwards.leave`."""
        self._live.pop(sequences, None)

    def reset(self) -> None:
        """See `Forwards.reset`."""
        self._live.clear()

    def advance(self, advances: Sequence[Advance]) -> list[Logits]:
        """See `Forwards.advance`. One pass for each request."""
        read = []
        for each in advances:
            rows = self._live[each.sequences].advance(each.parents, each.tokens)
            self._live[each.sequences] = rows
            each.sequences.length += 1
            read.append(logits_on_host(rows.logits))
        return read
