"""Rows whose logits go through transformers' own logits processors first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from midstream.middleware.host import Rows


class ProcessedRows:
    """Rows of another law: each row's logits as `processors(ids of the row, logits)` makes them.

    processors: a LogitsProcessorList of functions of a row's ids and scores, which keep nothing
        between calls, since rows move. ids: [R, L], the prompts as transformers would pass them.
    """

    def __init__(self, rows: Rows, processors: Any, ids: Tensor) -> None:
        self._rows = rows
        self._processors = processors
        self._ids = ids
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The processed logits [R, V], float32 as in `generate()`."""
        if self._logits is None:
            scores = self._rows.logits.to(torch.float32, copy=True)  # some processors work in place
            self._logits = self._processors(self._ids, scores)
        return self._logits

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> ProcessedRows:
        """See `Rows.advance`."""
        kept = self._ids[torch.tensor(parents, device=self._ids.device)]
        new = torch.tensor(tokens, dtype=kept.dtype, device=kept.device)[:, None]
        rows = self._rows.advance(parents, tokens)
        return ProcessedRows(rows, self._processors, torch.cat([kept, new], dim=1))
