"""Where a server is, and how a client comes to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.middleware.errors import InputError

MESSAGE_BYTES = 64 << 20
"""Most that is taken of a server in one message."""

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment is for web pages
    ("grpc.lb_policy_name", "round_robin"),  # over all addresses that a name has
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files. ca: who signed the server's certificate, None for the system's roots.
    certificate, key: the client's own, where the server asks for one.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a secure channel. InputError where a file cannot be read."""
        parts = [_read(name, getattr(self, name)) for name in ("ca", "key", "certificate")]
        return grpc.ssl_channel_credentials(*parts)


def _read(name: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"tls.{name}", f"{path} ({error.strerror})", "a PEM file") from None


@dataclass(frozen=True, slots=True)
class Connection:
    """A target as gRPC writes it, and what goes with every call.

    target: "unix:PATH", "HOST:PORT" or "dns:///HOST:PORT". Raises InputError for anything else, and
    for a token that others could read on its way.
    """

    target: str
    token: str | None = None
    tls: ClientTls | None = None

    def __post_init__(self) -> None:
        if self.target.startswith("unix:"):
            if self.tls is not None:
                raise InputError("tls", "TLS for a Unix socket", "None")
            return
        address = TcpAddress.parse(self.target.removeprefix("dns:///"), "target")
        if self.token is not None and self.tls is None and not address.is_loopback:
            got = f"a token without TLS to {address}"
            raise InputError("token", got, "tls=ClientTls(...) with it, or an address on loopback")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def channel(self) -> grpc.Channel:
        """A channel for calls that block."""
        if self.tls is None:
            return grpc.insecure_channel(self.target, OPTIONS)
        return grpc.secure_channel(self.target, self.tls.credentials(), OPTIONS)

    def aio_channel(self) -> grpc.aio.Channel:
        """A channel for the running event loop."""
        if self.tls is None:
            return grpc.aio.insecure_channel(self.target, OPTIONS)
        return grpc.aio.secure_channel(self.target, self.tls.credentials(), OPTIONS)


@dataclass(frozen=True, slots=True)
class Retries:
    """When a call that may be made twice is made again: after what the server says, or else
    first_seconds, twice that, and so on. attempts: in all.
    """

    attempts: int = 4
    first_seconds: float = 0.1

    def wait_seconds(self, attempt: int, asked: float | None) -> float | None:
        """How long to wait after the attempt of that number, from 1 on; None: not again."""
        if attempt >= self.attempts:
            return None
        return self.first_seconds * 2 ** (attempt - 1) if asked is None else asked
