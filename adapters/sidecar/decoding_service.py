"""Decoding: weighted constrained generation by the server's own models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

from midstream.adapters.sidecar.batching import Batch
from midstream.adapters.sidecar.drawing import Draws
from midstream.adapters.sidecar.engine_generation import EngineGeneration, engine_generation
from midstream.adapters.sidecar.generation import METRICS, Generation, generation
from midstream.adapters.sidecar.models import EngineModel, Models, ServedModel
from midstream.adapters.sidecar.runtime import Runtime, Service
from midstream.proto.v1 import decoding_pb2 as pb
from midstream.proto.v1 import decoding_pb2_grpc as rpc
from midstream.proto.v1 import status_pb2 as status_pb

NAME = "midstream.v1.Decoding"

Context = Any
"""A grpc.aio.ServicerContext: the published types of it are partial."""

Tell: TypeAlias = Callable[[pb.GenerateEvent], Awaitable[None]]


class Decoding(rpc.DecodingServicer):
    """See proto/midstream/v1/decoding.proto."""

    def __init__(self, runtime: Runtime, models: Models) -> None:
        self._runtime = runtime
        self._models = models
        self._draws = Draws(runtime.drawing)
        self._batches: dict[str, Batch] = {}
        self._engines = asyncio.Semaphore(runtime.limits.engine_requests)

    async def Generate(  # noqa: N802  # the generated name
        self, request: pb.GenerateRequest, context: Context
    ) -> None:
        """Events as they happen."""
        _, summary = await self._run(request, context.write, told=True)
        await context.write(pb.GenerateEvent(summary=summary))

    async def GenerateOnce(  # noqa: N802  # the generated name
        self, request: pb.GenerateRequest, context: Context
    ) -> pb.GenerateResponse:
        """The summary alone."""
        run, summary = await self._run(request, _nobody, told=False)
        return pb.GenerateResponse(summary=summary, prompt_token_ids=run.prompt)

    async def _run(
        self, request: pb.GenerateRequest, tell: Tell, *, told: bool
    ) -> tuple[Generation | EngineGeneration, status_pb.Summary]:
        """What a request comes to. told: whether anybody hears of its events."""
        model = self._models.any(request.model)
        runtime, limits = self._runtime, self._runtime.limits
        telemetry = runtime.telemetry
        if isinstance(model, EngineModel):
            with telemetry.phase(METRICS, "compile"):
                over = await runtime.compiling.run(
                    engine_generation, model, request, limits, told=told
                )
            async with self._engines:
                await tell(pb.GenerateEvent(started=over.started))
                with telemetry.phase(METRICS, "engine"):
                    return over, await over.run(telemetry.metrics, tell)
        with telemetry.phase(METRICS, "compile"):
            run = await runtime.compiling.run(generation, model, request, limits, told=told)
        return run, await self._to_the_end(run, tell)

    async def _to_the_end(self, run: Generation, tell: Tell) -> status_pb.Summary:
        """Step by step, telling each step's events. Whatever ends it, the rows leave.

        The model goes on while an event is being written, and no further than that.
        """
        telemetry = self._runtime.telemetry
        rows = self._batch(run.model).open(run.prompt, rows=run.most_rows, tokens=run.most_tokens)
        try:
            reading = rows.first()
            await tell(pb.GenerateEvent(started=run.started))
            while True:
                with telemetry.phase(METRICS, "forward"):
                    logits = await reading
                with telemetry.phase(METRICS, "draw"):
                    grown = await self._draws.run(partial(run.step, logits, telemetry.metrics))
                if grown.growth is not None:
                    reading = rows.advance(grown.growth.parents, grown.growth.tokens)
                for event in grown.events:
                    await tell(event)
                if grown.summary is not None:
                    return grown.summary
        finally:
            rows.close()

    def _batch(self, model: ServedModel) -> Batch:
        """The one of the model, made by the first request in the server's event loop."""
        batch = self._batches.get(model.alias)
        if batch is None:
            batch = self._batches[model.alias] = Batch(model.forwards(), model.room)
        return batch


async def _nobody(event: pb.GenerateEvent) -> None:
    """Tell nobody."""


def decoding(runtime: Runtime, models: Models) -> Service:
    """The service."""
    return Service(NAME, rpc.add_DecodingServicer_to_server, Decoding(runtime, models))
