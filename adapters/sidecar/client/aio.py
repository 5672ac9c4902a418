"""The client for event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from midstream.adapters.sidecar.client.aio_streams import (
    AsyncParticleStream,
    AsyncSequenceStream,
)
from midstream.adapters.sidecar.client.byte_calls import AsyncByteCalls
from midstream.adapters.sidecar.client.calls import AwaitedCall
from midstream.adapters.sidecar.client.connection import ClientTls, Connection, Retries
from midstream.adapters.sidecar.client.errors import SidecarError, failure_of
from midstream.adapters.sidecar.client.requests import (
    ModelInfo,
    OnEvent,
    Prompt,
    built_strategy,
    generate_request,
    model_info,
    read_event,
    with_particles,
    without_particles,
)
from midstream.adapters.sidecar.client.session import KnownVocabulary, ProcessOptions
from midstream.adapters.sidecar.protocol import Answer, LogitsType
from midstream.adapters.sidecar.wire.results import Outcome, outcome
from midstream.middleware.strategy import Strategy
from midstream.proto.v1 import (
    bytes_pb2_grpc,
    decoding_pb2_grpc,
    logits_processing_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from midstream.proto.v1 import logits_processing_pb2 as process_pb

T = TypeVar("T")


class AsyncClient:
    """`Client` for event loops: the same arguments, the same results, the same errors.

    To be made, used and closed in one running event loop.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: ClientTls | None = None,
        timeout_seconds: float = 300.0,
        retries: Retries | None = None,
    ) -> None:
        connection = Connection(target, token, tls)
        self._metadata = connection.metadata
        self._timeout_seconds = timeout_seconds
        self._retries = retries or Retries()
        self._channel = connection.aio_channel()
        self._decoding: Any = decoding_pb2_grpc.DecodingStub(self._channel)
        self._models: Any = models_pb2_grpc.ModelsStub(self._channel)
        self._processing: Any = logits_processing_pb2_grpc.LogitsProcessingStub(self._channel)
        self.bytes = AsyncByteCalls(
            bytes_pb2_grpc.BytesStub(self._channel), self._metadata, self._tried
        )

    async def generate(
        self,
        prompt: Prompt,
        *,
        constraint: Any = None,
        strategy: Strategy | Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        model: str = "",
        occurrence: int = 0,
        timeout_seconds: float | None = None,
    ) -> Outcome:
        """See `Client.generate`. Cancelling the task ends the call."""
        built = built_strategy(strategy, constraint)
        request = generate_request(
            prompt, built, model=model, occurrence=occurrence, events=on_event is not None
        )
        told = [False]

        async def work(left: float) -> Outcome:
            result: Outcome | None = None
            call = self._decoding.Generate(request, timeout=left, metadata=self._metadata)
            try:
                async for message in call:
                    event = read_event(message)
                    if isinstance(event, Outcome):
                        result = event
                    elif event is not None and on_event is not None:
                        told[0] = True
                        on_event(event)
            finally:
                call.cancel()
            if result is None:
                raise SidecarError("INTERNAL", "the stream ended without a summary")
            return result

        return await self._tried(work, timeout_seconds, lambda: not told[0])

    async def generate_once(
        self,
        prompt: Prompt,
        *,
        constraint: Any = None,
        strategy: Strategy | Mapping[str, Any] | None = None,
        model: str = "",
        occurrence: int = 0,
        timeout_seconds: float | None = None,
    ) -> Outcome:
        """See `Client.generate_once`."""
        built = built_strategy(strategy, constraint)
        request = generate_request(prompt, built, model=model, occurrence=occurrence, events=False)

        async def work(left: float) -> Outcome:
            response = await self._decoding.GenerateOnce(
                request, timeout=left, metadata=self._metadata
            )
            return outcome(response.summary)

        return await self._tried(work, timeout_seconds)

    async def models(self, timeout_seconds: float | None = None) -> list[ModelInfo]:
        """See `Client.models`."""
        request = models_pb2.ListModelsRequest()

        async def work(left: float) -> list[ModelInfo]:
            told = await self._models.List(request, timeout=left, metadata=self._metadata)
            return [model_info(each) for each in told.models]

        return await self._tried(work, timeout_seconds)

    def process(
        self,
        vocabulary: KnownVocabulary,
        row_size: int,
        *,
        constraint: Any = None,
        strategy: Strategy | Mapping[str, Any] | None = None,
        answer: Answer = "token",
        dtype: LogitsType = "float32",
        eos_ids: Sequence[int] = (),
        shared_rows: int = 0,
    ) -> AsyncSequenceStream:
        """See `Client.process`: `async with client.process(...) as stream`."""
        options = ProcessOptions(
            vocabulary,
            row_size,
            without_particles(built_strategy(strategy, constraint)),
            answer,
            dtype,
            tuple(eos_ids),
            shared_rows=shared_rows,
        )
        return AsyncSequenceStream(self._open, options)

    def particles(
        self,
        vocabulary: KnownVocabulary,
        row_size: int,
        *,
        constraint: Any = None,
        strategy: Strategy | Mapping[str, Any] | None = None,
        dtype: LogitsType = "float32",
        eos_ids: Sequence[int] = (),
        sequence: int = 0,
        shared_rows: int = 0,
    ) -> AsyncParticleStream:
        """See `Client.particles`: `async with client.particles(...) as run`."""
        options = ProcessOptions(
            vocabulary,
            row_size,
            with_particles(built_strategy(strategy, constraint)),
            "token",
            dtype,
            tuple(eos_ids),
            sequence,
            shared_rows,
        )
        return AsyncParticleStream(self._open, options)

    async def close(self) -> None:
        """End all calls."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _open(self) -> AwaitedCall[process_pb.ProcessRequest, process_pb.ProcessResponse]:
        return AwaitedCall(self._processing.Process, self._metadata)

    async def _tried(
        self,
        work: Callable[[float], Awaitable[T]],
        timeout_seconds: float | None,
        again: Callable[[], bool] = lambda: True,
    ) -> T:
        """Do it once, or more often where it may be."""
        loop = asyncio.get_running_loop()
        end = loop.time() + (timeout_seconds or self._timeout_seconds)
        attempt = 0
        while True:
            attempt += 1
            try:
                return await work(max(end - loop.time(), 0.001))
            except grpc.RpcError as error:
                failure = failure_of(error)
            wait = None
            if isinstance(failure, SidecarError) and failure.may_succeed_later and again():
                wait = self._retries.wait_seconds(attempt, failure.retry_seconds)
            if wait is None or loop.time() + wait >= end:
                raise failure
            await asyncio.sleep(wait)
