"""Real servers on Unix sockets and loopback, inside a test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import pytest

from midstream.adapters.sidecar.runtime import Runtime, Service
from midstream.adapters.sidecar.server import Load, Services, Sidecar
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.middleware.errors import InputError
from midstream.proto.v1 import decoding_pb2, decoding_pb2_grpc, models_pb2, models_pb2_grpc

T = TypeVar("T")

SECONDS = 60.0
"""No test waits longer for its server."""


@asynccontextmanager
async def running(
    services: Services, *, load: Load | None = None, **settings: Any
) -> AsyncIterator[Sidecar]:
    """A started server, on a Unix socket in a folder of its own unless the settings say else."""
    chosen = {"listen": None, "unix": True, "grace_seconds": 5.0, **settings}
    sidecar = Sidecar(ServerSettings(**chosen), services, load)
    await sidecar.start()
    try:
        yield sidecar
    finally:
        await sidecar.drain(0.0)


Serve = Callable[..., AbstractAsyncContextManager[Sidecar]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(services, **settings) as sidecar`."""
    return running


@pytest.fixture
def in_loop() -> Callable[[Awaitable[T]], T]:
    """Runs a coroutine in an event loop of its own, for a bounded time."""

    def run(work: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(work, SECONDS)

        return asyncio.run(bounded())

    return run


@pytest.fixture
def channel_to() -> Callable[[Sidecar], grpc.aio.Channel]:
    """A channel to a server's first address, without credentials."""

    def channel(sidecar: Sidecar) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(sidecar.addresses[0])

    return channel


@dataclass
class Fake:
    """Two services that do as the name of the model says; what they saw.

    fault: an exception of ours; input: one of a client's; hang: nothing, for ever; else an answer.
    """

    calls: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def services(self, runtime: Runtime) -> Sequence[Service]:
        """For `Sidecar`."""
        self.runtime = runtime
        models = Service(
            "midstream.v1.Models", models_pb2_grpc.add_ModelsServicer_to_server, _Models(self)
        )
        decoding = Service(
            "midstream.v1.Decoding",
            decoding_pb2_grpc.add_DecodingServicer_to_server,
            _Decoding(self),
        )
        return [models, decoding]

    async def act(self, name: str) -> None:
        """What a call of that name does."""
        self.calls.append(name)
        if name == "fault":
            raise RuntimeError("of the client's text: SECRET")
        if name == "input":
            raise InputError("model", "SECRET" * 50, "another")
        if name == "hang":
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise


class _Models(models_pb2_grpc.ModelsServicer):
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    async def Get(self, request: models_pb2.GetModelRequest, context: Any) -> models_pb2.Model:  # noqa: N802
        await self.fake.act(request.model)
        return models_pb2.Model(model=request.model)

    async def List(  # noqa: N802
        self, request: models_pb2.ListModelsRequest, context: Any
    ) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(models=[models_pb2.Model(model="fake")])


class _Decoding(decoding_pb2_grpc.DecodingServicer):
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    async def Generate(  # noqa: N802
        self, request: decoding_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[decoding_pb2.GenerateEvent]:
        for position in range(3):
            with self.fake.runtime.telemetry.phase("decoding", "draw"):
                yield decoding_pb2.GenerateEvent(tokens=decoding_pb2.Tokens(position=position))
        await self.fake.act(request.model)


@pytest.fixture
def fake() -> Fake:
    """Services without a model."""
    return Fake()
