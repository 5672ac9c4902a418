"""The client's calls of the service Bytes: `client.bytes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from midstream.adapters.sidecar.client.byte_values import (
    PLAIN,
    ByteTarget,
    HealedText,
    NextByteLaw,
    Reading,
    Text,
    TextCover,
    TextScore,
    heal_request,
    next_byte_request,
    read_covers,
    read_healed,
    read_laws,
    read_scores,
    text_messages,
)
from midstream.adapters.sidecar.client.requests import Prompt
from midstream.proto.v1 import bytes_pb2 as pb


class ByteCalls:
    """Calls of Bytes that block. Each takes a batch and gives a list of the same length.

    texts: str or bytes. context_ids: fixed ids before each text; None: the tokenizer's beginning of
    sequence. What is wrong with a request raises InputError, all else SidecarError.
    """

    def __init__(
        self, stub: Any, metadata: Any, tried: Callable[[Callable[[float], Any], float | None], Any]
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._tried = tried

    def next_byte(
        self,
        texts: Sequence[Text],
        *,
        reading: Reading = PLAIN,
        byte_temperature: float | None = None,
        context_ids: Sequence[int] | None = None,
        timeout_seconds: float | None = None,
    ) -> list[NextByteLaw]:
        """The law of the byte after each text."""
        request = next_byte_request(texts, reading, byte_temperature, context_ids)
        return read_laws(self._call(self._stub.NextByte, request, timeout_seconds))

    def score(
        self,
        texts: Sequence[Text],
        *,
        reading: Reading = PLAIN,
        context_ids: Sequence[int] | None = None,
        timeout_seconds: float | None = None,
    ) -> list[TextScore]:
        """The probability of each text, byte by byte."""
        request = pb.ScoreRequest(
            reading=reading.message(), texts=text_messages(texts, context_ids)
        )
        return read_scores(self._call(self._stub.Score, request, timeout_seconds))

    def cover(
        self,
        texts: Sequence[Text],
        *,
        reading: Reading = PLAIN,
        context_ids: Sequence[int] | None = None,
        most: int | None = None,
        timeout_seconds: float | None = None,
    ) -> list[TextCover]:
        """The most probable token strings that each text may stand in."""
        messages = text_messages(texts, context_ids)
        request = pb.CoverRequest(reading=reading.message(), texts=messages, most=most)
        return read_covers(self._call(self._stub.Cover, request, timeout_seconds))

    def heal(
        self,
        prompts: Sequence[Prompt],
        *,
        model: str = "",
        target: ByteTarget = "canonical",
        constraint: Any = None,
        law: Mapping[str, Any] | None = None,
        seed: int = 0,
        heal: bool | Sequence[bool] = True,
        timeout_seconds: float | None = None,
    ) -> list[HealedText]:
        """Draw the end of each prompt again: `generate` may go on from `token_ids`.

        prompts: texts, or ids. constraint: of the bytes behind each prompt. law: the fields of a
        strategy's. Equal prompts of a batch are drawn apart.
        """
        request = heal_request(prompts, model, target, constraint, law, seed, heal)
        return read_healed(self._call(self._stub.Heal, request, timeout_seconds))

    def _call(self, method: Any, request: Any, timeout_seconds: float | None) -> Any:
        return self._tried(
            lambda left: method(request, timeout=left, metadata=self._metadata), timeout_seconds
        )


class AsyncByteCalls:
    """`ByteCalls` for event loops."""

    def __init__(
        self,
        stub: Any,
        metadata: Any,
        tried: Callable[[Callable[[float], Awaitable[Any]], float | None], Awaitable[Any]],
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._tried = tried

    async def next_byte(
        self,
        texts: Sequence[Text],
        *,
        reading: Reading = PLAIN,
        byte_temperature: float | None = None,
        context_ids: Sequence[int] | None = None,
        timeout_seconds: float | None = None,
    ) -> list[NextByteLaw]:
        """See `ByteCalls.next_byte`."""
        request = next_byte_request(texts, reading, byte_temperature, context_ids)
        return read_laws(await self._call(self._stub.NextByte, request, timeout_seconds))

    async def score(
        self,
        texts: Sequence[Text],
        *,
        reading: Reading = PLAIN,
        context_ids: Sequence[int] | None = None,
        timeout_seconds: float | None = None,
    ) -> list[TextScore]:
        """See `ByteCalls.score`."""
        request = pb.ScoreRequest(
            reading=reading.message(), texts=text_messages(texts, context_ids)
        )
        return read_scores(await self._call(self._stub.Score, request, timeout_seconds))

    async def cover(
        self,
        texts: Sequence[Text],
        *,
        reading: Reading = PLAIN,
        context_ids: Sequence[int] | None = None,
        most: int | None = None,
        timeout_seconds: float | None = None,
    ) -> list[TextCover]:
        """See `ByteCalls.cover`."""
        messages = text_messages(texts, context_ids)
        request = pb.CoverRequest(reading=reading.message(), texts=messages, most=most)
        return read_covers(await self._call(self._stub.Cover, request, timeout_seconds))

    async def heal(
        self,
        prompts: Sequence[Prompt],
        *,
        model: str = "",
        target: ByteTarget = "canonical",
        constraint: Any = None,
        law: Mapping[str, Any] | None = None,
        seed: int = 0,
        heal: bool | Sequence[bool] = True,
        timeout_seconds: float | None = None,
    ) -> list[HealedText]:
        """See `ByteCalls.heal`."""
        request = heal_request(prompts, model, target, constraint, law, seed, heal)
        return read_healed(await self._call(self._stub.Heal, request, timeout_seconds))

    async def _call(self, method: Any, request: Any, timeout_seconds: float | None) -> Any:
        async def work(left: float) -> Any:
            return await method(request, timeout=left, metadata=self._metadata)

        return await self._tried(work, timeout_seconds)
