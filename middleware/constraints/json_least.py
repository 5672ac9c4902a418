"""A bound from below on the length of the JSON texts of a schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

_LEAST_OF_TYPE = {
    "null": 4.0,
    "boolean": 4.0,
    "integer": 1.0,
    "number": 1.0,
    "string": 2.0,
    "array": 2.0,
    "object": 2.0,
}
_ROUNDS = 64


def least_bytes(schema: Any) -> float:
    """No compact JSON text of the schema has fewer bytes. Infinite where there is no finite one.

    Keywords that are not read here can only make texts longer, so the bound holds for any schema.
    References are followed within the schema; those elsewhere count 1. Rounds from infinity down,
    as shortest paths are found: a chain of more than 64 references that is not settled by then
    counts 1 too.
    """
    targets = _targets(schema)
    if targets is None:
        return 1.0
    found = dict.fromkeys(targets, math.inf)
    for _ in range(_ROUNDS):
        now = {name: _least(target, found) for name, target in targets.items()}
        if now == found:
            return _least(schema, found)
        found = now
    return 1.0


def _targets(schema: Any) -> dict[str, Any] | None:
    """The schemas that references name; None for too many, or where some are relative to a base."""
    targets: dict[str, Any] = {}
    for part in _parts(schema):
        if not isinstance(part, Mapping):
            continue
        if "$id" in part and part is not schema:
            return None
        name = part.get("$ref")
        if isinstance(name, str) and name not in targets:
            targets[name] = _resolve(schema, name)
    return targets if len(targets) <= 1000 else None


def _parts(value: Any) -> Iterator[Any]:
    stack = [value]
    while stack:
        part = stack.pop()
        yield part
        if isinstance(part, Mapping):
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)


def _resolve(schema: Any, name: str) -> Any:
    """What a JSON pointer names, or True, which anything satisfies, where it is unknown."""
    if name != "#" and not name.startswith("#/"):
        return True
    for step in unquote(name[1:]).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, Mapping) and key in schema:
            schema = schema[key]
        elif isinstance(schema, list) and key.isdigit() and int(key) < len(schema):
            schema = schema[int(key)]
        else:
            return True
    return schema


def _least(schema: Any, found: Mapping[str, float]) -> float:
    """By the bounds found so far for references. All keywords must hold: so the largest bound."""
    if schema is False:
        return math.inf
    if not isinstance(schema, Mapping):
        return 1.0
    bounds = [1.0]
    if "const" in schema:
        bounds.append(_length(schema["const"]))
    if isinstance(schema.get("enum"), list):
        bounds.append(min(map(_length, schema["enum"]), default=math.inf))
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            bounds.append(min((_least(one, found) for one in schema[keyword]), default=math.inf))
    if isinstance(schema.get("allOf"), list):
        bounds.extend(_least(one, found) for one in schema["allOf"])
    if isinstance(schema.get("$ref"), str):
        bounds.append(found.get(schema["$ref"], 1.0))
    bounds.append(_least_of_types(schema, found))
    return max(bounds)


def _least_of_types(schema: Mapping[str, Any], found: Mapping[str, float]) -> float:
    types = schema.get("type", list(_LEAST_OF_TYPE))
    names = [types] if isinstance(types, str) else types
    if not isinstance(names, list):
        return 1.0
    return min((_least_of_type(name, schema, found) for name in names), default=math.inf)


def _least_of_type(name: Any, schema: Mapping[str, Any], found: Mapping[str, float]) -> float:
    if name == "string":
        return 2.0 + _count(schema, "minLength")
    if name == "array":
        first = schema.get("prefixItems", ())
        first = first if isinstance(first, Sequence) else ()
        size = _count(schema, "minItems")
        items = [_least(one, found) for one in first[:size]]
        rest = size - len(items)
        more = rest * _least(schema.get("items", True), found) if rest else 0.0
        return 2.0 + sum(items) + more + max(0, size - 1)
    if name == "object":
        return _least_of_object(schema, found)
    return _LEAST_OF_TYPE.get(name, 1.0)


def _least_of_object(schema: Mapping[str, Any], found: Mapping[str, float]) -> float:
    required = schema.get("required", ())
    properties = schema.get("properties", {})
    if not isinstance(required, list) or not isinstance(properties, Mapping):
        return 2.0
    keys = {key for key in required if isinstance(key, str)}
    members = [_length(key) + 1 + _least(properties.get(key, True), found) for key in keys]
    return 2.0 + sum(members) + max(0, len(members) - 1)


def _count(schema: Mapping[str, Any], keyword: str) -> int:
    value = schema.get(keyword, 0)
    return int(value) if isinstance(value, (int, float)) and 0 <= value < 2**53 else 0


def _length(value: Any) -> float:
    """Of a value's shortest text: numbers may have shorter forms than Python's."""
    if isinstance(value, bool) or value is None:
        return 4.0 + (value is False)
    if isinstance(value, (int, float)):
        return 1.0
    if isinstance(value, str):
        return 2.0 + len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):
        return 2.0 + sum(map(_length, value)) + max(0, len(value) - 1)
    if isinstance(value, Mapping):
        members = sum(_length(key) + 1 + _length(one) for key, one in value.items())
        return 2.0 + members + max(0, len(value) - 1)
    return float(len(json.dumps(value)))
