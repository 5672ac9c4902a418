"""Errors of pydantic as errors of ours, which name the field."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.strategy_constraint import TAG

_ACCEPTED = {
    "missing": "a value",
    "model_type": "an object",
    "dict_type": "an object",
    "tuple_type": "a list",
    "too_short": "a list that is not empty",
}
"""For the kinds of error whose message speaks of Python."""


def strategy_error(error: ValidationError, parts: Mapping[str, type[BaseModel]]) -> InputError:
    """What a ValidationError complains of first, with the path of the field in dots.

    parts: the model that the last key or tag before an unknown field stands for; "" is the whole.
    What one of our own checks raised keeps its words.
    """
    complaints = error.errors(include_url=False)
    first = complaints[0]
    location = [str(part) for part in first["loc"]]
    path = [part for part in location if not part.startswith(TAG)]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return type(cause)(".".join([*path, cause.argument]), cause.got, cause.accepted)
    kind, message = first["type"], first["msg"].removeprefix("Input should be ")
    got: Any = "nothing" if kind == "missing" else first["input"]
    accepted = _ACCEPTED.get(kind, message)
    if kind == "extra_forbidden":
        got = "a field of that name"
        accepted = _known(location[-1], parts[location[-2] if len(location) > 1 else ""])
    elif kind == "json_invalid":
        accepted = f"valid JSON ({message.removeprefix('Invalid JSON: ')})"
    if len(complaints) > 1:
        accepted += f" (and {len(complaints) - 1} more)"
    return StrategyError(".".join(path) or "strategy", got, accepted)


def _known(name: str, model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return "one of " + ", ".join(known) + hint
