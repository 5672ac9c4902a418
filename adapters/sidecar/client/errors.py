"""What a call that failed raises: bad input as in process, all else as `SidecarError`."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc.error_details_pb2 import BadRequest, RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from midstream.middleware.errors import (
    ConstraintError,
    InputError,
    StrategyError,
    VocabularyError,
)

STATUS_METADATA = "grpc-status-details-bin"

_KINDS: tuple[tuple[tuple[str, ...], type[InputError]], ...] = (
    (("strategy.constraint",), ConstraintError),
    (("strategy", "answer", "handshake.answer"), StrategyError),
    (
        (
            "vocabulary",
            "handshake.vocabulary",
            "handshake.tokenizer_json",
            "handshake.tokens",
            "handshake.eos_ids",
            "handshake.row_size",
        ),
        VocabularyError,
    ),
)
"""The kind of error by how the field begins."""

_TRY_AGAIN = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


class SidecarError(RuntimeError):
    """A call that failed for no fault of its input.

    code: the name of the gRPC status, as "UNAVAILABLE". retry_seconds: when the server says to come
    again, None where it does not.
    """

    def __init__(self, code: str, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_seconds = retry_seconds

    @property
    def may_succeed_later(self) -> bool:
        """Whether the same call could succeed if it is made again."""
        return self.code in _TRY_AGAIN


def failure_of(error: grpc.RpcError) -> InputError | SidecarError:
    """What a failed call raises.

    INVALID_ARGUMENT and NOT_FOUND are InputErrors whose argument is the field of the request that
    the server names.
    """
    call: Any = error
    code, details = call.code(), call.details() or ""
    name = code.name if code is not None else "UNKNOWN"
    retry = None
    for detail in _details(call):
        if detail.Is(BadRequest.DESCRIPTOR):
            bad = BadRequest()
            detail.Unpack(bad)
            for violation in bad.field_violations:
                return input_error(violation.field, violation.description)
        if detail.Is(RetryInfo.DESCRIPTOR):
            info = RetryInfo()
            detail.Unpack(info)
            retry = info.retry_delay.ToMilliseconds() / 1000
    if name == "NOT_FOUND":
        field, _, description = details.partition(": ")
        return input_error(field, description)
    return SidecarError(name, details, retry)


def input_error(field: str, description: str) -> InputError:
    """The error for a field, from "got X; accepted: Y"."""
    got, separator, accepted = description.partition("; accepted: ")
    kind = next((kind for fields, kind in _KINDS if _begins(field, fields)), InputError)
    return kind(field, got.removeprefix("got "), accepted if separator else description)


def _begins(field: str, beginnings: tuple[str, ...]) -> bool:
    return any(
        field == begin or field.startswith((f"{begin}.", f"{begin}[")) for begin in beginnings
    )


def _details(call: Any) -> list[Any]:
    """The details of the rich status of a failed call."""
    for key, value in call.trailing_metadata() or ():
        if key == STATUS_METADATA:
            return list(Status.FromString(value).details)
    return []
