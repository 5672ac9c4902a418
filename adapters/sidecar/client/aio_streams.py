"""Streams of an engine that owns its sampling loop, for event loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from midstream.adapters.sidecar.client.calls import AwaitedCall
from midstream.adapters.sidecar.client.session import (
    ProcessOptions,
    ReadyInfo,
    RowOfStep,
    Session,
    StepResult,
    close,
    fork,
)
from midstream.adapters.sidecar.client.streams import asks_for_upload
from midstream.adapters.sidecar.wire.results import Outcome, ResamplingEvent
from midstream.middleware.errors import InputError
from midstream.middleware.smc import Growth
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import logits_processing_pb2 as pb

Open = Callable[[], AwaitedCall[pb.ProcessRequest, pb.ProcessResponse]]


class _AsyncStream:
    """A call; `async with` makes the handshake. ready: what the server made of it."""

    def __init__(self, open_call: Open, options: ProcessOptions) -> None:
        self._open_call = open_call
        self._session = Session(options)

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            self.end()
            raise
        return self

    async def _begin(self) -> None:
        upload = False
        while True:
            self._call = self._open_call()
            try:
                await self._call.send(self._session.handshake(upload=upload))
                self.ready: ReadyInfo = self._session.ready(await self._call.receive())
                return
            except InputError as error:
                known = isinstance(self._session.options.vocabulary, Vocabulary)
                if upload or not known or not asks_for_upload(error):
                    raise
                self._call.close()
                upload = True

    @property
    def buffer(self) -> npt.NDArray[Any]:
        """See `SequenceStream.buffer`."""
        if self._session.region is None:
            raise InputError("shared_rows", 0, "at least 1, for a stream with shared memory")
        return self._session.region.array

    async def _ask(self, request: pb.ProcessRequest) -> pb.ProcessResponse:
        await self._call.send(request)
        return await self._call.receive()

    def end(self) -> None:
        """End the call and give the shared memory up. Doing so twice does no harm."""
        self._call.close()
        self._session.close()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


class AsyncSequenceStream(_AsyncStream):
    """`SequenceStream` for event loops."""

    async def step(self, logits: Any | None, rows: Sequence[RowOfStep]) -> StepResult:
        """See `SequenceStream.step`."""
        return self._session.result(await self._ask(self._session.step(logits, rows)))

    async def fork(self, parent: int, to: int, sequence: int = 0) -> None:
        """See `SequenceStream.fork`."""
        await self._call.send(fork(parent, to, sequence))

    async def close(self, id: int) -> None:
        """See `SequenceStream.close`."""
        await self._call.send(close(id))


class AsyncParticleStream(_AsyncStream):
    """`ParticleStream` for event loops."""

    def __init__(self, open_call: Open, options: ProcessOptions) -> None:
        self.resamplings: list[ResamplingEvent] = []
        self._outcome: Outcome | None = None
        super().__init__(open_call, options)

    async def step(self, logits: Any) -> Growth | None:
        """See `ParticleStream.step`."""
        answer = await self._ask(self._session.step(logits, ()))
        growth, resampling = self._session.growth(answer)
        if resampling is not None:
            self.resamplings.append(resampling)
        if growth is None:
            self._outcome = self._session.outcome(await self._call.receive())
        return growth

    async def outcome(self) -> Outcome:
        """See `ParticleStream.outcome`."""
        if self._outcome is None:
            await self._call.half_close()
            self._outcome = self._session.outcome(await self._call.receive())
        return self._outcome
