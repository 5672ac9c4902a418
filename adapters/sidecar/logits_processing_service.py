"""LogitsProcessing: streams of engines that own their sampling loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from midstream.adapters.sidecar.pool import MANY_PROCESSORS, Pool, processors
from midstream.adapters.sidecar.process_handshake import opened
from midstream.adapters.sidecar.process_stream import METRICS, ProcessStream
from midstream.adapters.sidecar.runtime import Runtime, Service
from midstream.adapters.sidecar.shared_memory import RegionOf, Regions
from midstream.adapters.sidecar.vocabularies import Vocabularies
from midstream.adapters.sidecar.wire.errors import deadline_exceeded, refused
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import logits_processing_pb2 as pb

NAME = "midstream.v1.LogitsProcessing"
QUICK_BYTES = 1 << 20
"""Of a message that the event loop parses itself."""

FIRST = "a handshake, before anything else"

ALONE_SECONDS = 0.02
"""A stream that others have not interrupted for so long is answered without a change of threads,
where that takes less than a millisecond: the change costs as much as a third of a step.
"""

Context = Any
"""A grpc.aio.ServicerContext: the published types of it are partial."""


class LogitsProcessing:
    """See proto/midstream/v1/logits_processing.proto."""

    def __init__(self, runtime: Runtime, vocabularies: Vocabularies) -> None:
        self._runtime = runtime
        self._vocabularies = vocabularies
        self._few_processors = processors() < MANY_PROCESSORS
        self._latest = 0, 0.0  # which stream came last, and when

    async def Process(  # noqa: N802  # the generated name
        self, requests: AsyncIterator[bytes], context: Context
    ) -> None:
        """One group of sequences: the handshake, then step by step. See `_add` for the types."""
        handshake = await self._handshake(requests)
        runtime = self._runtime
        with runtime.telemetry.phase(METRICS, "compile"):
            stream_of = await runtime.compiling.run(
                opened, handshake, self._vocabularies, runtime.limits
            )
        regions = self._regions(handshake, context)
        try:
            await context.write(stream_of.ready.SerializeToString())
            metrics = runtime.telemetry.metrics
            stream = ProcessStream(stream_of, regions, metrics, runtime.limits)
            await self._steps(stream, requests, context)
        finally:
            if regions is not None:
                regions.close()

    async def _handshake(self, requests: AsyncIterator[bytes]) -> pb.Handshake:
        seconds = self._runtime.limits.handshake_seconds
        try:
            async with asyncio.timeout(seconds):
                data = await anext(requests, None)
        except TimeoutError:
            raise deadline_exceeded(f"no handshake came within {seconds:g} s") from None
        if data is None:
            raise refused("handshake", "nothing", FIRST)
        first = await self._parsed(data, self._runtime.compiling)
        if first.WhichOneof("message") != "handshake":
            raise refused("handshake", "another message", FIRST)
        return first.handshake

    async def _parsed(self, data: bytes, pool: Pool) -> pb.ProcessRequest:
        """The message; a large one is read in a thread."""
        try:
            if len(data) <= QUICK_BYTES:
                return pb.ProcessRequest.FromString(data)
            return await pool.run(pb.ProcessRequest.FromString, data)
        except DecodeError:
            raise refused("request", f"{len(data)} bytes", "a message of the method") from None

    def _regions(self, handshake: pb.Handshake, context: Context) -> Regions | None:
        """The regions of a handshake, which cost some microseconds each to open."""
        if not handshake.regions:
            return None
        if not self._runtime.allow_shared_memory:
            accepted = "inline tensors: this server does not allow shared memory"
            raise refused("handshake.regions", "regions", accepted)
        if not context.peer().startswith("unix:"):
            accepted = "inline tensors, or a call over the server's Unix socket"
            raise refused("handshake.regions", "regions over TCP", accepted)
        limits = self._runtime.limits
        named = (RegionOf(each.name, each.key, each.size_bytes) for each in handshake.regions)
        return Regions(named, most=limits.regions, most_bytes=limits.region_bytes)

    def _goes_on_here(self, stream: ProcessStream) -> bool:
        """Whether a quick step is answered in the event loop: where there are few processors, and
        where no other stream has come for an answer lately.
        """
        if self._few_processors:
            return True
        now = asyncio.get_running_loop().time()
        (other, when), self._latest = self._latest, (id(stream), now)
        return other == id(stream) or now - when > ALONE_SECONDS

    async def _steps(
        self,
        stream: ProcessStream,
        requests: AsyncIterator[bytes],
        context: Context,
    ) -> None:
        loop, drawing = asyncio.get_running_loop(), self._runtime.drawing
        telemetry, seconds = self._runtime.telemetry, self._runtime.limits.idle_seconds
        try:
            async with asyncio.timeout(seconds) as idle:
                async for data in requests:
                    idle.reschedule(loop.time() + seconds)
                    request = await self._parsed(data, drawing)
                    with telemetry.phase(METRICS, "draw"):
                        if stream.is_quick(request) and self._goes_on_here(stream):
                            response = stream.answer(request)
                        else:
                            response = await drawing.run(stream.answer, request)
                    if response is not None:
                        await context.write(response)
                    if stream.over:
                        break
                summary = await drawing.run(stream.summary)
                if summary is not None:
                    await context.write(summary)
        except TimeoutError:
            raise deadline_exceeded(f"nothing moved for {seconds:g} s") from None


def _add(servicer: LogitsProcessing, server: grpc.aio.Server) -> None:
    """Register the service with messages as bytes: the generated function would have the event loop
    parse and serialise them, which for a handshake takes up to a tenth of a second.
    """
    method = grpc.stream_stream_rpc_method_handler(servicer.Process, bytes, bytes)
    handler = grpc.method_handlers_generic_handler(NAME, {"Process": method})
    server.add_generic_rpc_handlers((handler,))


def logits_processing(runtime: Runtime, own: Callable[[], Iterable[Vocabulary]]) -> Service:
    """The service. own: the vocabularies of the server's models, which handshakes may name."""
    vocabularies = Vocabularies(own, runtime.limits)
    return Service(NAME, _add, LogitsProcessing(runtime, vocabularies))
