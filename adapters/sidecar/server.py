"""The gRPC server: its ports, its services, how it begins and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from midstream.adapters.sidecar import health
from midstream.adapters.sidecar.addresses import TcpAddress, UnixSocket
from midstream.adapters.sidecar.daemon import in_daemon_thread
from midstream.adapters.sidecar.gate import Gate
from midstream.adapters.sidecar.health import Health
from midstream.adapters.sidecar.interceptors import Interceptor
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.logs import event
from midstream.adapters.sidecar.metrics_server import MetricsServer
from midstream.adapters.sidecar.runtime import Runtime, Service, open_runtime
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.adapters.sidecar.telemetry import Telemetry
from midstream.adapters.sidecar.tracing import Tracing, otlp_exporter
from midstream.middleware.errors import InputError

Services = Callable[[Runtime], Sequence[Service]]
"""Makes the services of a server."""

Load = Callable[[], Any]
"""Loads the models. Called in a thread, while the server says that it is not ready."""

SPARE_STREAMS = 8
"""Of one connection, beyond all calls of the server: those are told when to come again."""

LAST_STATUS_SECONDS = 5.0
"""How long calls that are cut off may take to tell their clients."""

LAST_SPANS_SECONDS = 5.0
"""How long a server that ends waits for the collector of its traces."""


class Sidecar:
    """A server that can be started once, in one event loop.

    addresses: what clients give to gRPC, once it listens: host:port, unix:path.
    """

    def __init__(
        self, settings: ServerSettings, services: Services, load: Load | None = None
    ) -> None:
        limits = settings.limits
        self.settings = settings
        self.addresses: tuple[str, ...] = ()
        self._services = services
        self._load = load
        exporter = None if settings.traces is None else otlp_exporter(settings.traces)
        self._telemetry = Telemetry(tracing=Tracing(exporter))
        self._runtime = open_runtime(limits, self._telemetry, settings.allow_shared_memory)
        self._gate = Gate(limits.streams, limits.client_streams)
        self._server: grpc.aio.Server | None = None
        self._health: Health | None = None
        self._metrics: MetricsServer | None = None
        self._socket: UnixSocket | None = None
        self._ended = asyncio.Event()
        self._listens = False
        self._ending = False
        self._closing = False

    @property
    def running(self) -> int:
        """How many calls run."""
        return self._gate.running

    @property
    def draining(self) -> bool:
        """Whether it lets no call in any more."""
        return self._ending

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are read, as host:port; None where they are not."""
        return None if self._metrics is None else self._metrics.address

    async def start(self) -> None:
        """Listen, load the models, and say that it is ready.

        Raises InputError for an address that is taken and files that are no certificates, and
        whatever `load` raises; the server has ended then.
        """
        try:
            await self._begin()
        except BaseException:
            await self._close()
            raise

    async def _begin(self) -> None:
        begin = time.monotonic()
        services = self._services(self._runtime)
        names = [service.name for service in services]
        status = Health(names)
        self._health = status
        self._server = self._new_server(services, status)
        self.addresses = tuple(self._listen(self._server))
        if self.settings.metrics is not None:
            registry = self._telemetry.metrics.registry
            self._metrics = MetricsServer(self.settings.metrics, registry)
        await status.alive()
        await self._server.start()
        self._listens = True
        event("listening", addresses=self.addresses, metrics=self.metrics_address)
        if self._load is not None:
            await in_daemon_thread("load", self._load)
        if not self._ending:
            self._gate.phase = "ready"
            await status.ready()
            event("ready", services=names, seconds=round(time.monotonic() - begin, 3))

    def _new_server(self, services: Sequence[Service], status: Health) -> grpc.aio.Server:
        settings = self.settings
        interceptor = Interceptor(
            self._gate, settings.token, self._telemetry, settings.limits.handshake_seconds
        )
        # Not maximum_concurrent_rpcs: it counts down for the calls that it refused, too.
        server = grpc.aio.server(interceptors=[interceptor], options=_options(settings.limits))
        for service in services:
            service.add(service.servicer, server)
        add_HealthServicer_to_server(status.servicer, server)
        if settings.reflection:
            from grpc_reflection.v1alpha import reflection

            names = [service.name for service in services]
            told = (*names, health.NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(told, server)
        return server

    def _listen(self, server: grpc.aio.Server) -> list[str]:
        settings, listen = self.settings, self.settings.listen
        addresses = []
        if listen is not None:
            try:
                if settings.tls is None:
                    port = server.add_insecure_port(str(listen))
                else:
                    credentials = settings.tls.server_credentials()
                    port = server.add_secure_port(str(listen), credentials)
            except RuntimeError:
                accepted = "an address of this machine that is free"
                raise InputError("listen", str(listen), accepted) from None
            addresses.append(str(TcpAddress(listen.host, port)))
        if settings.unix:
            self._socket = UnixSocket(settings.unix_path)
            server.add_insecure_port(self._socket.target)
            addresses.append(self._socket.target)
        return addresses

    async def drain(self, grace_seconds: float | None = None) -> None:
        """End: let no call in, let those that run finish within the grace, cut off what is left.

        grace_seconds: in the place of the settings'. Called again with less it ends sooner.
        """
        grace = self.settings.grace_seconds if grace_seconds is None else grace_seconds
        first, self._ending = not self._ending, True
        if first:
            event("draining", running=self.running, grace_seconds=grace)
            self._gate.phase = "draining"
            if self._health is not None:
                await self._health.not_ready()
        if not await self._gate.wait_empty(grace):
            event("cutting off", running=self.running)
            self._gate.cut_off()
        if first:
            await self._gate.wait_empty(LAST_STATUS_SECONDS)
            await self._close()
        await self.wait()

    async def _close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._server is not None:
            if not self._listens:  # gRPC closes the ports of a server that was started, alone
                await self._server.start()
            await self._server.stop(None)
        if self._metrics is not None:
            await in_daemon_thread("metrics", self._metrics.close)
        if self._socket is not None:
            self._socket.close()
        self._runtime.close()
        spans = in_daemon_thread("traces", self._telemetry.tracing.close)
        try:
            await asyncio.wait_for(spans, LAST_SPANS_SECONDS)
        except TimeoutError:
            event("spans lost")
        event("ended")
        self._ended.set()

    async def wait(self) -> None:
        """Until the server has ended."""
        await self._ended.wait()


def _options(limits: Limits) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        # None: grpcio 1.71 unpacks a message before it looks at the size that this comes to.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.max_concurrent_streams", limits.streams + SPARE_STREAMS),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", int(1000 * limits.handshake_seconds)),
        # Two servers on one port would share its calls unseen.
        ("grpc.so_reuseport", 0),
        # A long call is quiet at times, and clients ping then; and a client that vanished is found.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
