"""The peer, genlm-control 0.4.1, in its fastest settings that were found."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from genlm.backend.llm import AsyncTransformer
from genlm.control import (
    AWRS,
    BoolFSA,
    JsonSchema,
    Potential,
    PromptedLLM,
    direct_token_sampler,
)

Sampler = Any
"""A token sampler of the peer, which has no types."""


class RowPotential(Potential):  # type: ignore[misc]
    """A language model that says the same row in every context; the last column is the end."""

    def __init__(self, logits: npt.NDArray[np.float32]) -> None:
        super().__init__(list(range(logits.size - 1)))
        self.row = self.make_lazy_weights(torch.from_numpy(logits))

    async def prefix(self, context: list[Any]) -> float:
        """No weight of its own."""
        return 0.0

    async def complete(self, context: list[Any]) -> float:
        """No weight of its own."""
        return 0.0

    async def logw_next(self, context: list[Any]) -> Any:
        """The row."""
        return self.row


class TablePotential(Potential):  # type: ignore[misc]
    """The condition: 0 for valid tokens, -inf for others, looked up in a list of floats."""

    def __init__(self, valid: npt.NDArray[np.bool_], language_model: Potential) -> None:
        super().__init__(language_model.vocab, tables=language_model.tables)
        self.scores: list[float] = np.where(valid, 0.0, -np.inf).tolist()

    async def prefix(self, context: list[Any]) -> float:
        """Of the last token alone."""
        return self.scores[context[-1]] if context else 0.0

    async def complete(self, context: list[Any]) -> float:
        """Of the end."""
        return self.scores[-1]


def awrs_on_row(
    logits: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], *, accepts: int, seed: int
) -> Sampler:
    """Its AWRS on one row of log probabilities.

    Without autobatching, whose futures would only add to its time here.
    """
    model = RowPotential(logits)
    condition = TablePotential(valid, model)
    return AWRS(model, condition, seed=seed, max_accepts=accepts, autobatch=False)


class PeerModel:
    """A transformers model behind the peer's own backend.

    batch_size: how many queries it waits for: the number of particles. timeout: seconds that it
        waits for more queries, 0.02 by default; with 0 a batch goes as soon as every particle has
        asked, and no time is spent waiting.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prompt_ids: list[int], *, batch_size: int, timeout: float
    ) -> None:
        self.backend = AsyncTransformer(model, tokenizer, batch_size=batch_size, timeout=timeout)
        self.potential = PromptedLLM(self.backend, prompt_ids=prompt_ids)

    def mask(self, pattern: str) -> Sampler:
        """Every allowed token by one walk over the trie of the vocabulary: exact weights."""
        return direct_token_sampler(self.potential * self._condition(pattern))

    def awrs(self, pattern: str, *, accepts: int) -> Sampler:
        """Its AWRS."""
        return AWRS(self.potential, self._condition(pattern), seed=0, max_accepts=accepts)

    def _condition(self, pattern: str) -> Any:
        return BoolFSA.from_regex(pattern).coerce(self.potential, f=b"".join)

    def forget(self) -> None:
        """Drop what the backend remembers of earlier runs: every run then forwards its tokens."""
        self.backend.clear_cache()


def json_potential(schema: dict[str, Any]) -> Any:
    """Its check of JSON Schemas, over bytes: its incremental parser and its validator."""
    return JsonSchema(schema)
