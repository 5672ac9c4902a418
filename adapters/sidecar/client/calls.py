"""Streams of messages that block, and streams that are awaited."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import grpc

from midstream.adapters.sidecar.client.errors import SidecarError, failure_of

Request = TypeVar("Request")
Response = TypeVar("Response")

_ENDED = "the server ended the stream"


class BlockingCall(Generic[Request, Response]):
    """A call of two streams, message by message. Not for two threads at once."""

    def __init__(self, method: Callable[..., Any], metadata: Any) -> None:
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._call = method(self._sent(), metadata=metadata)

    def _sent(self) -> Iterator[Request]:
        while (request := self._requests.get()) is not None:
            yield request

    def send(self, request: Request) -> None:
        """Send one message, in a moment."""
        self._requests.put(request)

    def receive(self) -> Response:
        """The next message. Raises what a failed call raises, and SidecarError at its end."""
        try:
            response: Response | None = next(self._call, None)
        except grpc.RpcError as error:
            raise failure_of(error) from None
        if response is None:
            raise SidecarError("CANCELLED", _ENDED)
        return response

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._requests.put(None)

    def close(self) -> None:
        """End the call."""
        self._requests.put(None)
        self._call.cancel()


class AwaitedCall(Generic[Request, Response]):
    """A call of two streams, message by message. Not for two tasks at once."""

    def __init__(self, method: Callable[..., Any], metadata: Any) -> None:
        self._call = method(metadata=metadata)

    async def send(self, request: Request) -> None:
        """Send one message."""
        try:
            await self._call.write(request)
        except grpc.RpcError as error:
            raise failure_of(error) from None
        except grpc.aio.UsageError:  # the server has ended the call: `receive` says why
            pass

    async def receive(self) -> Response:
        """The next message. Raises what a failed call raises, and SidecarError at its end."""
        try:
            response: Any = await self._call.read()
        except grpc.RpcError as error:
            raise failure_of(error) from None
        if response is grpc.aio.EOF:  # type: ignore[attr-defined]  # absent from the stubs
            raise SidecarError("CANCELLED", _ENDED)
        received: Response = response
        return received

    async def half_close(self) -> None:
        """Say that nothing more will be sent."""
        await self._call.done_writing()

    def close(self) -> None:
        """End the call."""
        self._call.cancel()
