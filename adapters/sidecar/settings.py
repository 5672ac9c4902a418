"""How a server is set up, and what it refuses to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.adapters.sidecar.credentials import Tls, Token
from midstream.adapters.sidecar.limits import Limits
from midstream.middleware.errors import InputError

DEFAULT_LISTEN = TcpAddress("127.0.0.1", 50051)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What `midstream serve` is told.

    listen: TCP, None for none. unix: whether to listen at a Unix socket too; unix_path: where, None
        for a new folder. tls, token: who may call, on TCP; a token is asked for on every address.
    allow_shared_memory: whether clients on this machine may register regions.
    metrics: where Prometheus reads, over HTTP. reflection: whether the services are told to whoever
        may call. public_reflection, public_metrics: whether these may be seen off this machine.
    traces: an endpoint of OTLP over HTTP.
    grace_seconds: how long running calls may go on when the server is told to end.

    Raises InputError for a server that would be open to others than was meant.
    """

    listen: TcpAddress | None = DEFAULT_LISTEN
    unix: bool = False
    unix_path: Path | None = None
    tls: Tls | None = None
    token: Token | None = None
    allow_shared_memory: bool = False
    metrics: TcpAddress | None = None
    public_metrics: bool = False
    reflection: bool = False
    public_reflection: bool = False
    traces: str | None = None
    grace_seconds: float = 30.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.listen is None and not self.unix:
            raise InputError("listen", "no address", "a TCP address, a Unix socket, or both")
        if self.unix_path is not None and not self.unix:
            raise InputError("unix_path", str(self.unix_path), "a path together with unix=True")
        if not self.grace_seconds >= 0:
            raise InputError("grace_seconds", self.grace_seconds, "a number, 0 or above")
        if self.is_public:
            self._check_public()
        if self.metrics is not None and not (self.metrics.is_loopback or self.public_metrics):
            accepted = "an address on loopback; --public-metrics, where others may read them"
            raise InputError("metrics", f"{self.metrics}, off loopback", accepted)

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach it."""
        return self.listen is not None and not self.listen.is_loopback

    def _check_public(self) -> None:
        got = f"{self.listen}, off loopback"
        if self.token is not None and self.tls is None:
            accepted = (
                "--tls-certificate and --tls-key with it (a token would cross the network readable "
                "by all), or an address on loopback"
            )
            raise InputError("token", f"a token without TLS on {got}", accepted)
        if self.token is None and (self.tls is None or self.tls.client_ca is None):
            accepted = (
                "an address on loopback, or TLS with credentials: --tls-certificate and --tls-key "
                "with --token-file or --tls-client-ca"
            )
            raise InputError("listen", f"{got}, where everybody may call", accepted)
        if self.reflection and not self.public_reflection:
            accepted = "no reflection; --public-reflection, where others may list the services"
            raise InputError("reflection", f"reflection on {got}", accepted)
