"""Bearer tokens: who has none gets nothing but health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.adapters.sidecar.credentials import Token
from midstream.proto.v1 import decoding_pb2, models_pb2
from midstream.proto.v1.decoding_pb2_grpc import DecodingStub
from midstream.proto.v1.models_pb2_grpc import ModelsStub

SECRET = "correct-horse-battery-staple"

WRONG = [
    None,
    "",
    SECRET,
    "Bearer",
    "Bearer ",
    f"Bearer {SECRET}x",
    f"Bearer {SECRET[:-1]}",
    f"Bearer  {SECRET}",
    f"Basic {SECRET}",
    f"Bearer {SECRET.upper()}",
    "Bearer " + "x" * 5000,
]


def _metadata(header: str | None) -> tuple[tuple[str, str], ...]:
    return () if header is None else (("authorization", header),)


@pytest.mark.parametrize("header", WRONG)
def test_what_is_not_the_token_does_not_fit(header: str | None) -> None:
    assert not Token(SECRET).fits(dict(_metadata(header)))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_told_in_any_case(scheme: str) -> None:
    assert Token(SECRET).fits({"authorization": f"{scheme} {SECRET}"})


def test_the_comparison_is_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return a == b

    monkeypatch.setattr("hmac.compare_digest", compare)
    Token(SECRET).fits({"authorization": "Bearer x"})
    Token(SECRET).fits({})
    assert seen == [(b"x", SECRET.encode()), (b"", SECRET.encode())]


@pytest.mark.parametrize("where", ["unix", "tcp"])
def test_calls_need_the_token_on_every_address(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any, where: str
) -> None:
    address = {"listen": TcpAddress("127.0.0.1", 0), "unix": False} if where == "tcp" else {}

    async def scenario() -> None:
        async with (
            serve(fake.services, token=Token(SECRET), **address) as sidecar,
            channel_to(sidecar) as channel,
        ):
            get = ModelsStub(channel).Get
            for header in WRONG:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await get(models_pb2.GetModelRequest(), metadata=_metadata(header))
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
                assert SECRET not in (caught.value.details() or "")
            stream = DecodingStub(channel).Generate(decoding_pb2.GenerateRequest())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(stream))
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert fake.calls == []
            answer = await get(
                models_pb2.GetModelRequest(model="x"), metadata=_metadata(f"Bearer {SECRET}")
            )
            assert answer.model == "x"

    in_loop(scenario())


def test_health_needs_none_and_reflection_does(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
    from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

    async def scenario() -> None:
        async with (
            serve(fake.services, token=Token(SECRET), reflection=True) as sidecar,
            channel_to(sidecar) as channel,
        ):
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = await check(health_pb2.HealthCheckRequest(service="readiness"))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            ask = ServerReflectionStub(channel).ServerReflectionInfo
            request = ServerReflectionRequest(list_services="")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(ask(iter([request]))))
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            granted = ask(iter([request]), metadata=_metadata(f"Bearer {SECRET}"))
            listed = await anext(aiter(granted))
            names = {service.name for service in listed.list_services_response.service}
            assert {"midstream.v1.Models", "midstream.v1.Decoding"} < names

    in_loop(scenario())
