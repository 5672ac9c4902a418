"""Routes of the API server: weights, and constraints compiled beforehand.

`VLLM_PLUGINS=midstream` loads them, with `--worker-extension-cls
midstream.adapters.vllm.WeightsExtension`. They lie under /v1, so that `--api-key`
guards them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from midstream.adapters.vllm.worker_extension import PlainRecord
from midstream.middleware.errors import InputError
from midstream.middleware.strategy import Strategy

if TYPE_CHECKING:
    from argparse import Namespace

    from starlette.datastructures import State
    from vllm.engine.protocol import EngineClient

PREFIX = "/v1/midstream"
MOST_KEYS = 4096
PREPARE_SECONDS = 60.0
_POLL_SECONDS = 0.02

Key = Annotated[str, Field(min_length=1, max_length=160, pattern=r"^[\w.:-]+$")]


class WeightsRequest(BaseModel):
    """Several ids at once."""

    model_config = ConfigDict(extra="forbid")
    ids: Annotated[list[Key], Field(min_length=1, max_length=MOST_KEYS)]


class PrepareRequest(BaseModel):
    """A strategy whose constraint is to be compiled."""

    model_config = ConfigDict(extra="forbid")
    strategy: dict[str, Any]


class WeightsEndpoints:
    """vLLM's endpoint plugin `midstream`."""

    name = "midstream"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Register the routes."""
        router = APIRouter(prefix=PREFIX)
        router.add_api_route("/weights/{key}", self.one, methods=["GET"])
        router.add_api_route("/weights", self.several, methods=["POST"])
        router.add_api_route("/prepare", self.prepare, methods=["POST"])
        router.add_api_route("/vocabulary", self.vocabulary, methods=["GET"])
        app.include_router(router)

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Keep the way to the engine."""
        state.midstream_engine = engine_client

    async def one(self, key: Key, request: Request) -> dict[str, Any]:
        """The records of one id: 404 where they are not kept (any more)."""
        (rows,) = await self._records(request, [key])
        if rows is None:
            raise HTTPException(404, f"no records of {key}: not asked here, or forgotten")
        return {"id": key, "records": rows}

    async def several(self, asked: WeightsRequest, request: Request) -> dict[str, Any]:
        """The records of several ids; null for one that is not known."""
        rows = await self._records(request, asked.ids)
        return {"records": dict(zip(asked.ids, rows, strict=True))}

    async def prepare(self, asked: PrepareRequest, request: Request) -> dict[str, Any]:
        """Compile a constraint in the engine: 400 where it does not compile, 503 where it takes
        longer than a minute; it then goes on, and may be asked for again.
        """
        try:
            strategy = Strategy(**asked.strategy)
            strategy.build_constraint()
        except InputError as error:
            raise HTTPException(400, str(error)) from None
        text = strategy.model_dump_json(exclude_unset=True)
        deadline = asyncio.get_running_loop().time() + PREPARE_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            state, reason = await self._call(request, "midstream_prepare", text)
            if state == "failed":
                raise HTTPException(400, reason)
            if state == "ready":
                return {"state": state}
            await asyncio.sleep(_POLL_SECONDS)
        raise HTTPException(503, "the constraint is still compiling", {"Retry-After": "10"})

    async def vocabulary(self, request: Request) -> dict[str, Any]:
        """What the engine's vocabulary is told apart by."""
        found: dict[str, Any] = await self._call(request, "midstream_vocabulary")
        return found

    async def _records(self, request: Request, keys: Sequence[str]) -> list[Any]:
        answers = await self._call(request, "midstream_records", list(keys))
        return [None if rows is None else [_jsonable(row) for row in rows] for rows in answers]

    async def _call(self, request: Request, method: str, *arguments: Any) -> Any:
        """The answer of the first worker: all of them draw alike."""
        engine = request.app.state.midstream_engine
        try:
            return (await engine.collective_rpc(method, args=arguments))[0]
        except (AttributeError, NotImplementedError) as error:
            needed = "midstream.adapters.vllm.WeightsExtension"
            raise HTTPException(
                501, f"start the server with --worker-extension-cls {needed}"
            ) from error


def _jsonable(row: PlainRecord) -> list[Any]:
    """JSON has no infinities: -inf is "-inf", and a weight that is not known "nan"."""
    return [
        str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for value in row
    ]
