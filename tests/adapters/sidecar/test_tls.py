"""TLS and mutual TLS: who is not known gets no connection."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.adapters.sidecar.credentials import Tls, Token
from midstream.adapters.sidecar.process import client_line
from midstream.middleware.errors import InputError
from midstream.proto.v1 import models_pb2
from midstream.proto.v1.models_pb2_grpc import ModelsStub

LOOPBACK = {"listen": TcpAddress("127.0.0.1", 0), "unix": False}
PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Pki:
    """An authority, and certificates of it as PEM files."""

    folder: Path
    authority: trustme.CA

    @property
    def roots(self) -> bytes:
        return self.authority.cert_pem.bytes()

    @property
    def roots_path(self) -> Path:
        path = self.folder / "ca.pem"
        path.write_bytes(self.roots)
        return path

    def pair(self, name: str, **options: Any) -> tuple[bytes, bytes]:
        """Key and certificate."""
        issued = self.authority.issue_cert(name, common_name=name, **options)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return issued.private_key_pem.bytes(), chain

    def server(self, *, mutual: bool = False, **options: Any) -> Tls:
        key, certificate = self.pair("localhost", **options)
        (self.folder / "key.pem").write_bytes(key)
        (self.folder / "certificate.pem").write_bytes(certificate)
        client_ca = self.roots_path if mutual else None
        return Tls(self.folder / "certificate.pem", self.folder / "key.pem", client_ca)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path, trustme.CA())


async def _get(
    sidecar: Any, credentials: grpc.ChannelCredentials | None, **options: Any
) -> models_pb2.Model:
    address = sidecar.addresses[0].replace("127.0.0.1", "localhost")
    if credentials is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        channel = grpc.aio.secure_channel(address, credentials)
    async with channel:
        get = ModelsStub(channel).Get
        answer: models_pb2.Model = await get(
            models_pb2.GetModelRequest(model="x"), timeout=20, **options
        )
        return answer


async def _refused(sidecar: Any, credentials: grpc.ChannelCredentials | None) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _get(sidecar, credentials)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_client_that_knows_the_authority_calls(
    serve: Any, fake: Any, in_loop: Callable[..., Any], pki: Pki
) -> None:
    async def scenario() -> None:
        async with serve(fake.services, tls=pki.server(), **LOOPBACK) as sidecar:
            known = grpc.ssl_channel_credentials(pki.roots)
            assert (await _get(sidecar, known)).model == "x"
            stranger = grpc.ssl_channel_credentials(trustme.CA().cert_pem.bytes())
            await _refused(sidecar, stranger)
            await _refused(sidecar, None)
            assert fake.calls == ["x"]

    in_loop(scenario())


def test_a_token_over_tls(serve: Any, fake: Any, in_loop: Callable[..., Any], pki: Pki) -> None:
    secret = "0123456789abcdef"

    async def scenario() -> None:
        settings = {"tls": pki.server(), "token": Token(secret), **LOOPBACK}
        async with serve(fake.services, **settings) as sidecar:
            known = grpc.ssl_channel_credentials(pki.roots)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _get(sidecar, known)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            both = grpc.composite_channel_credentials(
                known, grpc.access_token_call_credentials(secret)
            )
            assert (await _get(sidecar, both)).model == "x"

    in_loop(scenario())


def test_mutual_tls_wants_a_certificate_of_the_authority(
    serve: Any, fake: Any, in_loop: Callable[..., Any], pki: Pki
) -> None:
    async def scenario() -> None:
        async with serve(fake.services, tls=pki.server(mutual=True), **LOOPBACK) as sidecar:
            mine = grpc.ssl_channel_credentials(pki.roots, *pki.pair("client"))
            assert (await _get(sidecar, mine)).model == "x"
            await _refused(sidecar, grpc.ssl_channel_credentials(pki.roots))
            other = Pki(pki.folder, trustme.CA()).pair("client")
            await _refused(sidecar, grpc.ssl_channel_credentials(pki.roots, *other))

    in_loop(scenario())


def test_an_expired_certificate_of_a_client(
    serve: Any, fake: Any, in_loop: Callable[..., Any], pki: Pki
) -> None:
    async def scenario() -> None:
        async with serve(fake.services, tls=pki.server(mutual=True), **LOOPBACK) as sidecar:
            old = pki.pair("client", not_before=PAST, not_after=PAST + datetime.timedelta(1))
            await _refused(sidecar, grpc.ssl_channel_credentials(pki.roots, *old))
            new = grpc.ssl_channel_credentials(pki.roots, *pki.pair("client"))
            assert (await _get(sidecar, new)).model == "x", "the server answers others"

    in_loop(scenario())


def test_an_expired_certificate_of_the_server(
    serve: Any, fake: Any, in_loop: Callable[..., Any], pki: Pki
) -> None:
    async def scenario() -> None:
        tls = pki.server(not_before=PAST, not_after=PAST + datetime.timedelta(1))
        async with serve(fake.services, tls=tls, **LOOPBACK) as sidecar:
            await _refused(sidecar, grpc.ssl_channel_credentials(pki.roots))

    in_loop(scenario())


def test_the_line_for_a_client_brings_the_certificate_and_the_token(
    serve: Any, fake: Any, in_loop: Callable[..., Any], pki: Pki
) -> None:
    path = pki.folder / "token"
    path.write_text("0123456789abcdef\n")

    def models(line: str) -> list[str]:
        names: dict[str, Any] = {}
        exec(line, names)
        with names["client"] as client:
            return [model.model for model in client.models()]

    async def scenario() -> None:
        settings = {"listen": TcpAddress("localhost", 0), "unix": False, "tls": pki.server()}
        async with serve(fake.services, token=Token.load(path), **settings) as sidecar:
            line = client_line(sidecar, path)
            assert "0123456789abcdef" not in line
            assert await asyncio.to_thread(models, line) == ["fake"]

    in_loop(scenario())


def test_the_unix_socket_stays_open_to_its_user(
    serve: Any, fake: Any, in_loop: Callable[..., Any], pki: Pki
) -> None:
    async def scenario() -> None:
        settings = {"listen": TcpAddress("127.0.0.1", 0), "tls": pki.server(mutual=True)}
        async with (
            serve(fake.services, unix=True, **settings) as sidecar,
            grpc.aio.insecure_channel(sidecar.addresses[1]) as channel,
        ):
            answer = await ModelsStub(channel).Get(models_pb2.GetModelRequest(model="x"))
            assert answer.model == "x"

    in_loop(scenario())


def test_files_that_are_none_stop_the_start(tmp_path: Path, pki: Pki) -> None:
    good = pki.server()
    (tmp_path / "bad.pem").write_text("no PEM")
    key, _ = pki.pair("other")
    (tmp_path / "other.pem").write_bytes(key)
    cases = [
        (Tls(tmp_path / "none", good.key), "tls_certificate", "No such file"),
        (Tls(good.certificate, tmp_path / "none"), "tls_key", "No such file"),
        (Tls(tmp_path / "bad.pem", good.key), "tls_certificate", "key that belongs to it"),
        (Tls(good.certificate, tmp_path / "other.pem"), "tls_certificate", "belongs to it"),
        (Tls(good.certificate, good.key, tmp_path / "none"), "tls_client_ca", "No such file"),
        (Tls(good.certificate, good.key, tmp_path / "bad.pem"), "tls_client_ca", "certificates"),
    ]
    for tls, argument, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            tls.server_credentials()
        assert caught.value.argument == argument
        assert key.decode() not in str(caught.value)
