"""What stands around every call: credentials, bounds, errors, metrics, a trace, a line of the log.

Health checks are exempt from all but a bound of their own.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from midstream.adapters.sidecar import health
from midstream.adapters.sidecar.credentials import Token
from midstream.adapters.sidecar.gate import Gate
from midstream.adapters.sidecar.logs import log_call, log_fault
from midstream.adapters.sidecar.telemetry import Telemetry
from midstream.adapters.sidecar.wire.errors import (
    Refusal,
    deadline_exceeded,
    internal,
    invalid,
    refused,
    unauthenticated,
)
from midstream.middleware.errors import InputError

Context = Any
"""A grpc.aio.ServicerContext: the published types of it are partial."""

Work = Callable[[], Awaitable[Any]]

NO_TOKEN = "no bearer token that fits: metadata `authorization: Bearer TOKEN`"
HEALTH_CALLS = 1024
HEALTH_CLIENT_CALLS = 32
"""Health checks at a time, of all and of one client: they need no credentials."""


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps the handler of every method."""

    def __init__(
        self, gate: Gate, token: Token | None, telemetry: Telemetry, first_message_seconds: float
    ) -> None:
        self._gate = gate
        self._token = token
        self._telemetry = telemetry
        self._first_message_seconds = first_message_seconds
        self._health_gate = Gate(HEALTH_CALLS, HEALTH_CLIENT_CALLS, "ready")

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """The handler to use for a call; None for an unknown method."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None:
            return None
        if method.startswith(f"/{health.NAME}/"):
            return self._wrapped(handler, self._around_health)

        async def around(context: Context, work: Work) -> Any:
            return await self._around(method, context, work)

        return self._wrapped(handler, around)

    def _wrapped(self, handler: Any, around: Callable[[Context, Work], Awaitable[Any]]) -> Any:
        """The same method as one that reads its requests from a stream.

        gRPC would wait for the one request of a unary method before anything here runs, and so for
        as long as a client likes.
        """
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = grpc.stream_stream_rpc_method_handler
        else:
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            make = grpc.stream_unary_rpc_method_handler
        streamed = handler.request_streaming
        answer = _written if inspect.isasyncgenfunction(inner) else _awaited

        async def call(requests: AsyncIterator[Any], context: Context) -> Any:
            async def work() -> Any:
                request = requests if streamed else await self._only(requests)
                return await answer(inner, request, context)

            return await around(context, work)

        return make(call, _reader(handler.request_deserializer), handler.response_serializer)

    async def _only(self, requests: AsyncIterator[Any]) -> Any:
        seconds = self._first_message_seconds
        try:
            async with asyncio.timeout(seconds):
                return await anext(requests)
        except StopAsyncIteration:
            raise refused("request", "no message", "one") from None
        except TimeoutError:
            raise deadline_exceeded(f"no request came within {seconds:g} s") from None

    async def _around_health(self, context: Context, work: Work) -> Any:
        try:
            with self._health_gate.admitted(client_of(context)):
                return await work()
        except Refusal as refusal:
            await context.abort_with_status(rpc_status.to_status(refusal.status))

    async def _around(self, method: str, context: Context, work: Work) -> Any:
        metadata = text_metadata(context)
        metrics = self._telemetry.metrics
        begin = time.perf_counter()
        code, entered = "OK", False
        try:
            if self._token is not None and not self._token.fits(metadata):
                raise unauthenticated(NO_TOKEN)
            with self._gate.admitted(client_of(context)):
                entered = True
                metrics.request_began(method)
                with self._telemetry.tracing.call(method, metadata):
                    return await _with_refusals(method, work)
        except Refusal as refusal:
            code = refusal.code
            await context.abort_with_status(rpc_status.to_status(refusal.status))
        except (asyncio.CancelledError, grpc.aio.BaseError):  # the client or its deadline ended it
            code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
            raise
        finally:
            seconds = time.perf_counter() - begin
            if entered:
                metrics.request_ended(method, code, seconds)
            else:
                metrics.request_refused(method, code)
            log_call(method, code, seconds, context.peer())


def _reader(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Reads a message. What cannot be read is the client's fault, not one of ours."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            raise refused("request", f"{len(data)} bytes", "a message of the method") from None

    return read


async def _with_refusals(method: str, work: Work) -> Any:
    """Bad input and faults as what a client is told of them."""
    try:
        return await work()
    except (Refusal, grpc.aio.BaseError):  # the latter: nobody is there any more
        raise
    except InputError as error:
        raise invalid(error) from None
    except Exception as error:
        raise internal(f"a fault of the server, logged as {log_fault(method, error)}") from None


async def _awaited(inner: Callable[..., Any], request: Any, context: Context) -> Any:
    return await inner(request, context)


async def _written(inner: Callable[..., Any], request: Any, context: Context) -> None:
    async with aclosing(inner(request, context)) as responses:
        async for response in responses:
            await context.write(response)


def text_metadata(context: Context) -> Mapping[str, str]:
    """The metadata of a call; of keys that come twice the last, of binary ones none."""
    pairs = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}


def client_of(context: Context) -> str | None:
    """Whose call it is: the subject of a certificate, or the address.

    None on a Unix socket, where gRPC tells nobody apart and all are the same user.
    """
    identities = context.peer_identities()
    if identities:
        return str(next(iter(identities)).decode(errors="replace"))
    peer: str = context.peer()
    return None if peer.startswith("unix:") else peer.rpartition(":")[0]
