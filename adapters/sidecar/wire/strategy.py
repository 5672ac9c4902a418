"""A strategy as a message, field for field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from midstream.middleware.errors import StrategyError
from midstream.middleware.strategy import Strategy
from midstream.proto.v1 import strategy_pb2 as pb

NAMED_KIND = "name"
"""The kind of a sampler that is a plain word in the data."""


def strategy_from(message: pb.Strategy) -> Strategy:
    """The strategy that a message stands for; fields that are not set have their defaults.

    Raises StrategyError, whose argument is the path of the field, for what no strategy has, a field
    that this version does not know among it.
    """
    return Strategy(**_fields(message, ()))


def strategy_message(strategy: Strategy) -> pb.Strategy:
    """The message of a strategy: what was set in it is set."""
    message = pb.Strategy()
    _fill(message, strategy.model_dump(mode="json", exclude_unset=True))
    return message


def _fields(message: Message, path: tuple[str, ...]) -> dict[str, Any]:
    """What is set in a message, as the data of the same part of a strategy."""
    _refuse_unknown(message, path)
    return {
        field.name: _value(field, value, (*path, field.name))
        for field, value in message.ListFields()
    }


def _value(field: FieldDescriptor, value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, pb.Constraint):
        return _constraint(value, path)
    if isinstance(value, pb.Sampler):
        return _sampler(value, path)
    return _fields(value, path) if isinstance(value, Message) else value


def _constraint(message: pb.Constraint, path: tuple[str, ...]) -> dict[str, Any]:
    """Its kind is the key of the data."""
    _refuse_unknown(message, path)
    kind = message.WhichOneof("kind")
    if kind is None:
        return {}
    value = getattr(message, kind)
    if not isinstance(value, Message):
        return {kind: value}
    _refuse_unknown(value, (*path, kind))
    if isinstance(value, pb.AllOf):
        parts = enumerate(value.constraints)
        return {kind: [_constraint(part, (*path, kind, str(i))) for i, part in parts]}
    if isinstance(value, pb.Choice):
        return {kind: list(value.texts)}
    data = _fields(value, path)
    if isinstance(value, pb.JsonSchema):
        data[kind] = _schema(value.json_schema, ".".join((*path, kind)))
    return data


def _schema(text: str, field: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep, or no number"
        raise StrategyError(field, text, f"a JSON Schema as JSON text ({reason})") from None


def _no_number(name: str) -> float:
    raise ValueError(name)


def _sampler(message: pb.Sampler, path: tuple[str, ...]) -> Any:
    data = _fields(message, path)
    return data.get(NAMED_KIND, data)


def _refuse_unknown(message: Message, path: tuple[str, ...]) -> None:
    """What this version does not know must not be left out silently: it may be a constraint."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        known = ", ".join(field.name for field in message.DESCRIPTOR.fields)
        got = f"field number {unknown[0].field_number}, which this version does not know"
        raise StrategyError(".".join(path) or "strategy", got, f"the fields {known}")


def _fill(message: Message, data: Mapping[str, Any]) -> None:
    for name, value in data.items():
        if value is None:
            continue
        field = message.DESCRIPTOR.fields_by_name[name]
        part = getattr(message, name)
        if isinstance(part, pb.Constraint):
            _fill_constraint(part, value)
        elif isinstance(part, pb.Sampler):
            _fill(part, {NAMED_KIND: value} if isinstance(value, str) else value)
        elif field.message_type is not None:
            part.SetInParent()
            _fill(part, value)
        else:
            setattr(message, name, value)


def _fill_constraint(message: pb.Constraint, data: Mapping[str, Any]) -> None:
    for kind, value in _kinds(message, data):
        part = getattr(message, kind)
        if isinstance(part, pb.AllOf):
            for each in value:
                _fill_constraint(part.constraints.add(), each)
        elif isinstance(part, pb.Choice):
            part.texts.extend(value)
        elif isinstance(part, pb.JsonSchema):
            schema = json.dumps(value, ensure_ascii=False)
            _fill(part, {**data, kind: schema})
        else:
            setattr(message, kind, value)


def _kinds(message: pb.Constraint, data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The key that tells the kind, and its value."""
    for field in message.DESCRIPTOR.oneofs_by_name["kind"].fields:
        if field.name in data:
            yield field.name, data[field.name]
