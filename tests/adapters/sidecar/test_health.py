"""Health: alive from the first moment, ready once models are loaded, not ready in a drain."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from midstream.adapters.sidecar.server import Sidecar
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.proto.v1 import models_pb2
from midstream.proto.v1.models_pb2_grpc import ModelsStub

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READY_ONES = ("", "readiness", "midstream.v1.Models", "midstream.v1.Decoding")
IS_READY = {"liveness": SERVING, **dict.fromkeys(READY_ONES, SERVING)}
IS_NOT = {"liveness": SERVING, **dict.fromkeys(READY_ONES, NOT_SERVING)}

SETTINGS = ServerSettings(listen=None, unix=True)


async def _statuses(channel: grpc.aio.Channel) -> dict[str, int]:
    check = health_pb2_grpc.HealthStub(channel).Check
    return {
        name: (await check(health_pb2.HealthCheckRequest(service=name))).status for name in IS_READY
    }


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_loading_serving_and_draining(
    fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    begun, loaded = threading.Event(), threading.Event()

    def load() -> None:
        begun.set()
        loaded.wait(30)

    async def scenario() -> None:
        sidecar = Sidecar(SETTINGS, fake.services, load)
        starting = asyncio.create_task(sidecar.start())
        await asyncio.to_thread(begun.wait, 30)
        async with channel_to(sidecar) as channel:
            get = ModelsStub(channel).Get
            assert await _statuses(channel) == IS_NOT
            with pytest.raises(grpc.aio.AioRpcError, match="being loaded") as caught:
                await get(models_pb2.GetModelRequest())
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE

            loaded.set()
            await starting
            assert await _statuses(channel) == IS_READY

            call = get(models_pb2.GetModelRequest(model="hang"))
            await _until(lambda: sidecar.running == 1)
            draining = asyncio.create_task(sidecar.drain())
            await _until(lambda: sidecar.draining)
            assert await _statuses(channel) == IS_NOT
            fake.release.set()
            assert (await call).model == "hang"
            await draining

    in_loop(scenario())


def test_watchers_see_the_changes_and_do_not_hold_up_the_end(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    async def scenario() -> None:
        async with serve(fake.services) as sidecar, channel_to(sidecar) as channel:
            request = health_pb2.HealthCheckRequest(service="midstream.v1.Decoding")
            watch = aiter(health_pb2_grpc.HealthStub(channel).Watch(request))
            assert (await anext(watch)).status == SERVING
            call = ModelsStub(channel).Get(models_pb2.GetModelRequest(model="hang"))
            await _until(lambda: sidecar.running == 1)
            ending = asyncio.create_task(sidecar.drain(1000.0))
            assert (await anext(watch)).status == NOT_SERVING
            fake.release.set()
            await call
            async with asyncio.timeout(20):
                await ending

    in_loop(scenario())


def test_an_unknown_service_is_not_found(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    async def scenario() -> None:
        async with serve(fake.services) as sidecar, channel_to(sidecar) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check(health_pb2.HealthCheckRequest(service="abacus"))
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND

    in_loop(scenario())


def test_a_model_that_does_not_load_ends_the_server(fake: Any, in_loop: Callable[..., Any]) -> None:
    def load() -> None:
        raise RuntimeError("no such model")

    async def scenario() -> None:
        sidecar = Sidecar(SETTINGS, fake.services, load)
        with pytest.raises(RuntimeError, match="no such model"):
            await sidecar.start()
        await sidecar.wait()

    in_loop(scenario())


def test_an_end_during_the_loading(fake: Any, in_loop: Callable[..., Any]) -> None:
    begun, loaded = threading.Event(), threading.Event()

    def load() -> None:
        begun.set()
        loaded.wait(30)

    async def scenario() -> None:
        sidecar = Sidecar(SETTINGS, fake.services, load)
        starting = asyncio.create_task(sidecar.start())
        await asyncio.to_thread(begun.wait, 30)
        await sidecar.drain()
        assert not starting.done()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        loaded.set()

    in_loop(scenario())
