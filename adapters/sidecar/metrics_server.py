"""Metrics over HTTP, on a port of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.middleware.errors import InputError


class MetricsServer:
    """Answers Prometheus from a thread."""

    def __init__(self, address: TcpAddress, registry: CollectorRegistry) -> None:
        try:
            self._server, self._thread = start_http_server(address.port, address.host, registry)
        except OSError as error:
            got = f"{address} ({error.strerror})"
            raise InputError("metrics", got, "an address that is free") from None
        self.address = str(TcpAddress(address.host, self._server.server_port))

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
