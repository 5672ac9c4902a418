"""Errors as google.rpc.Status: what was wrong, by field, or when to come again.

A status quotes at most 80 escaped characters of what a client sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2  # type: ignore[import-untyped]
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped]
    BadRequest,
    ResourceInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from midstream.middleware.errors import ConstraintError, InputError, VocabularyError

QUOTED = 80
RETRY_SECONDS = 1.0


class Refusal(Exception):  # noqa: N818 - an answer, more often than an error of anybody's
    """What ends a call: the status that the client gets."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status

    @property
    def code(self) -> str:
        """The name of its code, as INVALID_ARGUMENT."""
        return str(code_pb2.Code.Name(self.status.code))


def quoted(text: str, limit: int = QUOTED) -> str:
    """At most `limit` characters of a text, in printable ASCII."""
    head = text[:limit].encode("unicode_escape").decode("ascii")
    return head if len(head) <= limit and len(text) <= limit else head[: limit - 3] + "..."


def invalid(error: InputError, within: str = "") -> Refusal:
    """INVALID_ARGUMENT with the field that is wrong.

    within: the field of the request that the argument lies in.
    """
    field = f"{within}.{error.argument}" if within else error.argument
    description = _description(error)
    details = BadRequest(
        field_violations=[BadRequest.FieldViolation(field=field, description=description)]
    )
    return _refusal(code_pb2.INVALID_ARGUMENT, f"{field}: {description}", [details])


def _description(error: InputError) -> str:
    """What was got and what is accepted.

    The reason that an engine gives for what does not compile quotes the client too: it stands in
    brackets at the end of what is accepted.
    """
    got = error.got if isinstance(error.got, str) else repr(error.got)
    accepted, limit = error.accepted, QUOTED
    begin = accepted.find(" (") if accepted.endswith(")") else -1
    if isinstance(error, ConstraintError | VocabularyError) and begin >= 0:
        limit = QUOTED // 2
        accepted = f"{accepted[:begin]} ({quoted(accepted[begin + 2 : -1], limit)})"
    return f"got {quoted(got, limit)}; accepted: {accepted}"


def refused(field: str, got: str, accepted: str) -> Refusal:
    """INVALID_ARGUMENT whose words are all our own."""
    description = f"got {got}; accepted: {accepted}"
    violation = BadRequest.FieldViolation(field=field, description=description)
    details = BadRequest(field_violations=[violation])
    return _refusal(code_pb2.INVALID_ARGUMENT, f"{field}: {description}", [details])


def not_found(kind: str, name: str, accepted: str) -> Refusal:
    """NOT_FOUND. kind: what was looked for. accepted: what there is."""
    shown = quoted(name)
    details = ResourceInfo(resource_type=kind, resource_name=shown, description=accepted)
    return _refusal(code_pb2.NOT_FOUND, f"{kind}: got {shown}; accepted: {accepted}", [details])


def exhausted(message: str, retry_seconds: float = RETRY_SECONDS) -> Refusal:
    """RESOURCE_EXHAUSTED, and when to try again."""
    return _retry(code_pb2.RESOURCE_EXHAUSTED, message, retry_seconds)


def unavailable(message: str, retry_seconds: float = RETRY_SECONDS) -> Refusal:
    """UNAVAILABLE, and when to try again."""
    return _retry(code_pb2.UNAVAILABLE, message, retry_seconds)


def _retry(code: int, message: str, seconds: float) -> Refusal:
    delay = Duration()
    delay.FromMilliseconds(int(1000 * seconds))
    return _refusal(code, message, [RetryInfo(retry_delay=delay)])


def failed_precondition(message: str) -> Refusal:
    """FAILED_PRECONDITION: the request is good, the stream or the server is not in that state."""
    return _refusal(code_pb2.FAILED_PRECONDITION, message)


def deadline_exceeded(message: str) -> Refusal:
    """DEADLINE_EXCEEDED."""
    return _refusal(code_pb2.DEADLINE_EXCEEDED, message)


def unauthenticated(message: str) -> Refusal:
    """UNAUTHENTICATED."""
    return _refusal(code_pb2.UNAUTHENTICATED, message)


def internal(message: str) -> Refusal:
    """INTERNAL: a fault of ours."""
    return _refusal(code_pb2.INTERNAL, message)


def _refusal(code: int, message: str, details: Sequence[Message] = ()) -> Refusal:
    status = Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return Refusal(status)
