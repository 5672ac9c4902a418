"""The end of a server: no new calls, time for those that run, and then their status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from midstream.proto.v1 import decoding_pb2, models_pb2
from midstream.proto.v1.decoding_pb2_grpc import DecodingStub
from midstream.proto.v1.models_pb2_grpc import ModelsStub


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def _status(call: Any) -> tuple[grpc.StatusCode, bool]:
    """The code that a call ends with, and whether it says when to come again."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = rpc_status.from_call(caught.value)
    retry = found is not None and any(each.Is(RetryInfo.DESCRIPTOR) for each in found.details)
    return caught.value.code(), retry


def test_new_calls_are_sent_away_and_running_ones_finish(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    async def scenario() -> None:
        async with serve(fake.services) as sidecar, channel_to(sidecar) as channel:
            get = ModelsStub(channel).Get
            running = [get(models_pb2.GetModelRequest(model="hang")) for _ in range(8)]
            await _until(lambda: sidecar.running == 8)
            ending = asyncio.create_task(sidecar.drain(30.0))
            await _until(lambda: sidecar.draining)
            late = get(models_pb2.GetModelRequest(model="x"))
            assert await _status(late) == (grpc.StatusCode.UNAVAILABLE, True)
            assert not ending.done()
            fake.release.set()
            assert [(await call).model for call in running] == ["hang"] * 8
            await ending
            assert fake.cancelled == []

    in_loop(scenario())


def test_what_outlives_the_grace_is_cut_off_with_a_status(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    async def scenario() -> None:
        async with serve(fake.services) as sidecar, channel_to(sidecar) as channel:
            stream = DecodingStub(channel).Generate(decoding_pb2.GenerateRequest(model="hang"))
            unary = ModelsStub(channel).Get(models_pb2.GetModelRequest(model="hang"))
            events = aiter(stream)
            for position in range(3):
                assert (await anext(events)).tokens.position == position
            await _until(lambda: sidecar.running == 2 and fake.calls == ["hang", "hang"])
            begin = asyncio.get_running_loop().time()
            await sidecar.drain(0.2)
            assert 0.2 <= asyncio.get_running_loop().time() - begin < 10
            assert await _status(anext(events)) == (grpc.StatusCode.UNAVAILABLE, True)
            assert await _status(unary) == (grpc.StatusCode.UNAVAILABLE, True)
            assert fake.cancelled == ["hang", "hang"]

    in_loop(scenario())


def test_a_second_end_with_less_grace_is_sooner(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    async def scenario() -> None:
        async with serve(fake.services) as sidecar, channel_to(sidecar) as channel:
            call = ModelsStub(channel).Get(models_pb2.GetModelRequest(model="hang"))
            await _until(lambda: fake.calls == ["hang"])
            patient = asyncio.create_task(sidecar.drain(1000.0))
            await _until(lambda: sidecar.draining)
            await sidecar.drain(0.0)
            await patient
            assert await _status(call) == (grpc.StatusCode.UNAVAILABLE, True)

    in_loop(scenario())


def test_the_port_and_the_socket_are_free_afterwards(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any, tmp_path: Any
) -> None:
    path = tmp_path / "own" / "socket"

    async def once() -> None:
        async with serve(fake.services, unix_path=path) as sidecar, channel_to(sidecar) as channel:
            answer = await ModelsStub(channel).Get(models_pb2.GetModelRequest(model="x"))
            assert answer.model == "x"
        assert not path.parent.exists()

    in_loop(once())
    in_loop(once())


def test_the_end_of_a_server_without_calls_is_quick(
    serve: Any, fake: Any, in_loop: Callable[..., Any]
) -> None:
    async def scenario() -> None:
        async with serve(fake.services) as sidecar:
            begin = asyncio.get_running_loop().time()
            await sidecar.drain(1000.0)
            assert asyncio.get_running_loop().time() - begin < 5
            await sidecar.wait()

    in_loop(scenario())
