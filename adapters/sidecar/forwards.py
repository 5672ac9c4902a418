"""What a batch needs of a model: rows of many requests that join, go on, wait and leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

Logits: TypeAlias = npt.NDArray[Any]
"""float32 or float64 [R, V]."""

Prompt: TypeAlias = tuple[int, ...]


class Sequences:
    """The rows of one request, which are equally long. slots: where each of them lies."""

    __slots__ = ("length", "slots")

    def __init__(self, slot: int, length: int) -> None:
        self.slots = [slot]
        self.length = length


@dataclass(frozen=True, slots=True)
class Advance:
    """Row i of a request's next rows continues its row parents[i] with tokens[i]."""

    sequences: Sequences
    parents: Sequence[int]
    tokens: Sequence[int]


class Reading(Protocol):
    """Prompts that are being read."""

    def read(self) -> bool:
        """Read a part; whether it was the last."""


class Forwards(Protocol):
    """A model's rows. Of one thread at a time."""

    def together(self, waiting: Sequence[Prompt]) -> int:
        """How many of the first prompts are best read at once, at least one."""

    def begin(self, prompts: Sequence[Prompt]) -> Reading:
        """Prompts to read; nothing has been read yet."""

    def join(self, reading: Any) -> list[tuple[Sequences, Logits]]:
        """The row of each prompt that has been read, and its logits [1, V]."""

    def leave(self, sequences: Sequences) -> None:
        """Forget a request. Its memory goes with the next `advance`."""

    def advance(self, advances: Sequence[Advance]) -> list[Logits]:
        """The logits [R', V] of each request's next rows; none where nothing goes on."""

    def reset(self) -> None:
        """Forget all requests."""
