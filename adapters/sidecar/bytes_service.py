"""Bytes: byte laws, scores, covers and healed prompts, by the server's own models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from midstream.adapters.sidecar.byte_requests import METRICS, covers, heals, next_bytes, scores
from midstream.adapters.sidecar.models import Models
from midstream.adapters.sidecar.runtime import Runtime, Service
from midstream.proto.v1 import bytes_pb2 as pb
from midstream.proto.v1 import bytes_pb2_grpc as rpc

NAME = "midstream.v1.Bytes"

T = TypeVar("T")


class Bytes(rpc.BytesServicer):
    """See proto/midstream/v1/bytes.proto.

    One thread reads for all calls, beside the thread of the steps: a call that is cancelled before
    it is read costs nothing, one that is being read is read to its end.
    """

    def __init__(self, runtime: Runtime, models: Models) -> None:
        self._runtime = runtime
        self._models = models

    async def NextByte(  # noqa: N802  # the generated name
        self, request: pb.NextByteRequest, context: Any
    ) -> pb.NextByteResponse:
        """The law of the byte after each text."""
        model = self._models.get(request.reading.model)
        return await self._read(next_bytes, model, request, self._runtime.limits)

    async def Score(  # noqa: N802  # the generated name
        self, request: pb.ScoreRequest, context: Any
    ) -> pb.ScoreResponse:
        """The probability of each text."""
        model = self._models.get(request.reading.model)
        return await self._read(scores, model, request, self._runtime.limits)

    async def Cover(  # noqa: N802  # the generated name
        self, request: pb.CoverRequest, context: Any
    ) -> pb.CoverResponse:
        """The token strings of each text."""
        model = self._models.get(request.reading.model)
        return await self._read(covers, model, request, self._runtime.limits)

    async def Heal(  # noqa: N802  # the generated name
        self, request: pb.HealRequest, context: Any
    ) -> pb.HealResponse:
        """The prompts, healed."""
        model, runtime = self._models.get(request.model), self._runtime
        metrics = runtime.telemetry.metrics
        return await self._read(heals, model, request, runtime.limits, metrics)

    async def _read(self, work: Callable[..., T], *arguments: Any) -> T:
        with self._runtime.telemetry.phase(METRICS, "forward"):
            return await self._runtime.reading.run(work, *arguments)


def bytes_service(runtime: Runtime, models: Models) -> Service:
    """The service."""
    return Service(NAME, rpc.add_BytesServicer_to_server, Bytes(runtime, models))
