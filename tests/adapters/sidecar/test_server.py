"""A server among clients that are wrong, slow, gone, or too many."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_status import rpc_status

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.server import Sidecar
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.middleware.errors import InputError
from midstream.proto.v1 import decoding_pb2, models_pb2
from midstream.proto.v1.decoding_pb2_grpc import DecodingStub
from midstream.proto.v1.models_pb2_grpc import ModelsStub

TCP = {"listen": TcpAddress("127.0.0.1", 0), "unix": False}


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def _get(channel: grpc.aio.Channel, name: str, **options: Any) -> str:
    answer = await ModelsStub(channel).Get(models_pb2.GetModelRequest(model=name), **options)
    return str(answer.model)


async def _error(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def _detail(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    status = rpc_status.from_call(error)
    assert status is not None
    (detail,) = status.details
    found = kind()
    assert detail.Unpack(found)
    return found


def test_bad_input_and_faults_have_a_status_each(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    async def scenario() -> None:
        async with serve(fake.services) as sidecar, channel_to(sidecar) as channel:
            bad = await _error(_get(channel, "input"))
            assert bad.code() == grpc.StatusCode.INVALID_ARGUMENT
            (violation,) = _detail(bad, BadRequest).field_violations
            assert violation.field == "model"
            assert 0 < len(bad.details() or "") < 200

            fault = await _error(_get(channel, "fault"))
            assert fault.code() == grpc.StatusCode.INTERNAL
            assert "SECRET" not in (fault.details() or "")

            unknown = channel.unary_unary("/midstream.v1.Models/Destroy")
            missing = await _error(unknown(b""))
            assert missing.code() == grpc.StatusCode.UNIMPLEMENTED

            garbage = channel.unary_unary("/midstream.v1.Models/Get")
            unread = await _error(garbage(b"\xff\xff\xff\xff"))
            assert unread.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert await _get(channel, "x") == "x"

    in_loop(scenario())


@pytest.mark.parametrize("where", ["unix", "tcp"])
def test_a_message_of_100_mb_is_refused(
    serve: Any, fake: Any, in_loop: Callable[..., Any], where: str
) -> None:
    async def scenario() -> None:
        async with serve(fake.services, **(TCP if where == "tcp" else {})) as sidecar:
            options = [("grpc.max_send_message_length", -1)]
            async with grpc.aio.insecure_channel(sidecar.addresses[0], options) as channel:
                large = await _error(_get(channel, "x" * 100_000_000))
                assert large.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert fake.calls == []
                assert await _get(channel, "x") == "x"

    in_loop(scenario())


def test_a_message_that_must_be_unpacked_is_refused(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    """A thousandth of its size when packed, it would pass a bound on what comes in."""

    async def scenario() -> None:
        async with serve(fake.services) as sidecar, channel_to(sidecar) as channel:
            packed = _get(channel, "x" * 30_000_000, compression=grpc.Compression.Gzip)
            assert (await _error(packed)).code() == grpc.StatusCode.UNIMPLEMENTED
            assert fake.calls == []

    in_loop(scenario())


def test_calls_beyond_the_limit_are_told_when_to_come_again(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    async def scenario() -> None:
        limits = Limits(streams=3, client_streams=2)
        async with serve(fake.services, limits=limits) as sidecar, channel_to(sidecar) as channel:
            running = [asyncio.ensure_future(_get(channel, "hang")) for _ in range(3)]
            await _until(lambda: sidecar.running == 3)
            over = await _error(_get(channel, "x"))
            assert over.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert _detail(over, RetryInfo).retry_delay.ToMilliseconds() > 0
            assert "3 calls run" in (over.details() or "")
            running[0].cancel()
            await _until(lambda: sidecar.running == 2)
            assert await _get(channel, "x") == "x"
            fake.release.set()
            assert await asyncio.gather(*running[1:]) == ["hang"] * 2

    in_loop(scenario())


def test_one_client_cannot_take_every_call(
    serve: Any, fake: Any, in_loop: Callable[..., Any]
) -> None:
    """A client is an address; one with many connections is one. On IPv6 it is another."""

    async def scenario() -> None:
        limits = Limits(streams=8, client_streams=2)
        listen = TcpAddress("localhost", 0)
        async with serve(fake.services, limits=limits, listen=listen, unix=False) as sidecar:
            port = sidecar.addresses[0].rpartition(":")[2]
            apart = [("grpc.use_local_subchannel_pool", 1)]
            async with (
                grpc.aio.insecure_channel(f"127.0.0.1:{port}") as greedy,
                grpc.aio.insecure_channel(f"127.0.0.1:{port}", apart) as again,
            ):
                running = [asyncio.ensure_future(_get(greedy, "hang")) for _ in range(2)]
                await _until(lambda: sidecar.running == 2)
                for channel in (greedy, again):
                    over = await _error(_get(channel, "x"))
                    assert over.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                    assert "of this client" in (over.details() or "")
                fake.release.set()
                assert await asyncio.gather(*running) == ["hang"] * 2
                assert await _get(again, "x") == "x"

    in_loop(scenario())


def test_a_call_that_never_sends_its_request_is_closed(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    async def scenario() -> None:
        limits = Limits(handshake_seconds=0.2)
        async with serve(fake.services, limits=limits) as sidecar, channel_to(sidecar) as channel:
            for method in ("/midstream.v1.Models/Get", "/grpc.health.v1.Health/Check"):
                silent = channel.stream_unary(method)
                call = silent()
                await call.wait_for_connection()
                error = await _error(call)
                assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, method
                empty = await _error(channel.stream_unary(method)(iter(())))
                assert empty.code() == grpc.StatusCode.INVALID_ARGUMENT, method
            assert sidecar.running == 0
            assert await _get(channel, "x") == "x"

    in_loop(scenario())


def test_a_connection_that_says_nothing_is_closed(
    serve: Any, fake: Any, in_loop: Callable[..., Any]
) -> None:
    async def scenario() -> None:
        limits = Limits(handshake_seconds=0.3)
        async with serve(fake.services, limits=limits, **TCP) as sidecar:
            host, _, port = sidecar.addresses[0].rpartition(":")
            for said in (b"", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(said)
                try:
                    async with asyncio.timeout(10):
                        while await reader.read(4096):
                            pass
                except ConnectionError:
                    pass
                writer.close()
            async with grpc.aio.insecure_channel(sidecar.addresses[0]) as channel:
                assert await _get(channel, "x") == "x"

    in_loop(scenario())


@asynccontextmanager
async def _wire(path: str) -> AsyncIterator[str]:
    """The address of a wire to a Unix socket. It is cut when the context ends."""
    writers: list[asyncio.StreamWriter] = []
    pipes: list[asyncio.Task[None]] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(path)
        writers.extend((writer, far_writer))
        pipes.append(asyncio.create_task(pipe(reader, far_writer)))
        pipes.append(asyncio.create_task(pipe(far_reader, writer)))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*pipes)


def test_clients_that_leave_are_not_waited_for(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    """A cancelled call, one whose deadline passes, and one whose connection goes."""

    async def scenario() -> None:
        async with serve(fake.services) as sidecar:
            async with channel_to(sidecar) as channel:
                call = ModelsStub(channel).Get(models_pb2.GetModelRequest(model="hang"))
                await _until(lambda: sidecar.running == 1)
                call.cancel()
                await _until(lambda: sidecar.running == 0)

                late = await _error(_get(channel, "hang", timeout=0.2))
                assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                await _until(lambda: sidecar.running == 0)

            async with AsyncExitStack() as held:
                async with _wire(sidecar.addresses[0].removeprefix("unix:")) as address:
                    channel = await held.enter_async_context(grpc.aio.insecure_channel(address))
                    request = decoding_pb2.GenerateRequest(model="hang")
                    stream = DecodingStub(channel).Generate(request)
                    await anext(aiter(stream))
                    await _until(lambda: len(fake.calls) == 3)
                await _until(lambda: sidecar.running == 0)
            assert fake.cancelled == ["hang"] * 3

    in_loop(scenario())


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_thousand_connections_leave_nothing(
    serve: Any, fake: Any, in_loop: Callable[..., Any]
) -> None:
    async def scenario() -> None:
        async with serve(fake.services, limits=Limits(handshake_seconds=1.0), **TCP) as sidecar:
            host, _, port = sidecar.addresses[0].rpartition(":")
            async with grpc.aio.insecure_channel(sidecar.addresses[0]) as channel:
                assert await _get(channel, "x") == "x"
                before = _descriptors()
                for index in range(1000):
                    with socket.create_connection((host, int(port))) as connection:
                        if index % 2:
                            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                    if index % 50 == 0:
                        await asyncio.sleep(0)
                assert await _get(channel, "x") == "x"
                async with asyncio.timeout(20):
                    await _until(lambda: _descriptors() <= before + 2)

    in_loop(scenario())


def test_pings_do_not_end_a_long_call(serve: Any, fake: Any, in_loop: Callable[..., Any]) -> None:
    """The same call to a server with gRPC's own settings is ended by them."""
    pings = [("grpc.keepalive_time_ms", 50), ("grpc.http2.max_pings_without_data", 0)]

    async def scenario() -> None:
        plain = grpc.aio.server()
        for service in fake.services(None):
            service.add(service.servicer, plain)
        port = plain.add_insecure_port("127.0.0.1:0")
        await plain.start()
        try:
            async with (
                serve(fake.services, **TCP) as sidecar,
                grpc.aio.insecure_channel(f"127.0.0.1:{port}", pings) as there,
                grpc.aio.insecure_channel(sidecar.addresses[0], pings) as here,
            ):
                quiet = asyncio.create_task(_get(here, "hang"))
                error = await _error(_get(there, "hang"))
                assert "pings" in (error.details() or "").lower()
                await asyncio.sleep(1.0)
                fake.release.set()
                assert await quiet == "hang"
        finally:
            await plain.stop(None)

    in_loop(scenario())


def _memory(process: psutil.Process) -> int:
    """Bytes in use, without what the allocator keeps of what was given back before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    used: int = process.memory_info().rss
    return used


@pytest.mark.slow
def test_ten_thousand_calls_leave_nothing(
    serve: Any,
    fake: Any,
    in_loop: Callable[..., Any],
    channel_to: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A record of each call is kept by this fixture, where an earlier test turned logs on.
    caplog.set_level(logging.CRITICAL, logger="midstream.sidecar")
    process = psutil.Process()

    async def calls(channel: grpc.aio.Channel, count: int) -> None:
        """Some that succeed, some that are refused, streams, and streams that are left."""
        for _ in range(count // 50):
            streams = [
                DecodingStub(channel).Generate(decoding_pb2.GenerateRequest()) for _ in range(10)
            ]
            unary = [_get(channel, name) for name in ["x", "input", "x", "x"] * 10]
            await asyncio.gather(*unary, *map(anext, map(aiter, streams)), return_exceptions=True)
            for stream in streams[:5]:
                stream.cancel()
            for stream in streams[5:]:
                async for _event in stream:
                    pass
        fake.calls.clear()
        fake.cancelled.clear()

    async def scenario() -> None:
        async with serve(fake.services) as sidecar, channel_to(sidecar) as channel:
            await calls(channel, 4000)
            await _until(lambda: sidecar.running == 0)
            descriptors, memory = process.num_fds(), _memory(process)
            await calls(channel, 10_000)
            await _until(lambda: sidecar.running == 0)
            assert process.num_fds() <= descriptors
            assert _memory(process) - memory < 8 << 20
            assert len(asyncio.all_tasks()) < 20

    in_loop(scenario())


def test_connections_beyond_the_limit_are_closed(
    serve: Any, fake: Any, in_loop: Callable[..., Any]
) -> None:
    apart = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]

    async def answer(channel: grpc.aio.Channel) -> str:
        try:
            return await _get(channel, "x", timeout=5)
        except grpc.aio.AioRpcError as error:
            return error.code().name

    async def scenario() -> None:
        async with serve(fake.services, limits=Limits(connections=4), **TCP) as sidecar:
            channels = [grpc.aio.insecure_channel(sidecar.addresses[0], apart) for _ in range(5)]
            found = [await answer(channel) for channel in channels]
            assert found == ["x"] * 4 + ["UNAVAILABLE"]
            await channels.pop(0).close()
            while await answer(channels[-1]) != "x":
                await asyncio.sleep(0.05)
            for channel in channels:
                await channel.close()

    in_loop(scenario())


def test_a_taken_address_stops_the_start(
    serve: Any, fake: Any, in_loop: Callable[..., Any]
) -> None:
    async def scenario() -> None:
        async with serve(fake.services, unix=True, listen=TCP["listen"]) as sidecar:
            taken = TcpAddress.parse(sidecar.addresses[0], "")
            path = Path(sidecar.addresses[1].removeprefix("unix:"))
            for settings, argument in (
                (ServerSettings(listen=taken), "listen"),
                (ServerSettings(listen=None, unix=True, unix_path=path), "unix"),
                (ServerSettings(listen=None, unix=True, metrics=taken), "metrics"),
            ):
                second = Sidecar(settings, fake.services)
                with pytest.raises(InputError) as caught:
                    await second.start()
                assert caught.value.argument == argument
                await second.wait()
            async with grpc.aio.insecure_channel(sidecar.addresses[1]) as channel:
                assert await _get(channel, "x") == "x"

    in_loop(scenario())


def test_a_start_that_fails_leaves_no_listener(in_loop: Callable[..., Any]) -> None:
    async def scenario() -> None:
        with socket.socket() as free, socket.socket() as taken:
            for each in (free, taken):
                each.bind(("127.0.0.1", 0))
            taken.listen()
            listen, metrics = (TcpAddress(*each.getsockname()) for each in (free, taken))
            free.close()
            failing = Sidecar(ServerSettings(listen=listen, metrics=metrics), lambda runtime: [])
            with pytest.raises(InputError) as caught:
                await failing.start()
            assert caught.value.argument == "metrics"
            second = Sidecar(ServerSettings(listen=listen), lambda runtime: [])
            await second.start()
            assert second.addresses == (str(listen),)
            await second.drain(0.0)

    in_loop(scenario())
