"""What health checks are told."""

from __future__ import annotations

from collections.abc import Sequence

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio  # type: ignore[attr-defined]

NAME = "grpc.health.v1.Health"
LIVENESS = "liveness"
READINESS = "readiness"
OVERALL = ""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """`liveness` while the process answers; `readiness`, the overall status and each service while
    models are loaded and the server does not drain.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self.servicer = aio.HealthServicer()
        self._ready_ones = (OVERALL, READINESS, *services)

    async def alive(self) -> None:
        """It answers; it is not ready yet."""
        await self.servicer.set(LIVENESS, SERVING)
        await self.not_ready()

    async def ready(self) -> None:
        """Send calls."""
        for name in self._ready_ones:
            await self.servicer.set(name, SERVING)

    async def not_ready(self) -> None:
        """Send no calls."""
        for name in self._ready_ones:
            await self.servicer.set(name, NOT_SERVING)
