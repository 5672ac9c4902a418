"""JSON records read from a sentence: compact JSON with the keys that were asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random

from makers.item import Item
from makers.words import CITIES, COLOURS, ITEMS, NAMES, PETS, WEEKDAYS

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "person": (
        "{name} is {age} years old and lives in {city}.",
        "{name} lives in {city} and is {age}.",
        "In {city} there is a person called {name}, aged {age}.",
    ),
    "order": (
        "{name} orders {quantity} of item {item} at {price} euros.",
        "For {name}: {quantity} x {item}, {price} euros each.",
        "{name} buys a {item} for {price} euros, {quantity} times.",
    ),
    "pet": (
        "{owner} has a {colour} {pet} named {name}.",
        "The {colour} {pet} called {name} belongs to {owner}.",
        "{name} is a {pet}, its coat is {colour} and its owner is {owner}.",
    ),
    "meeting": (
        "We meet {name} on {day} at {hour} in room {room}.",
        "On {day}, room {room}, {hour} o'clock: a talk with {name}.",
        "{name} waits in room {room} at {hour} on {day}.",
    ),
    "flight": (
        "{seats} seats from {start} to {end} at gate {gate}.",
        "The flight to {end} leaves {start} from gate {gate} with {seats} seats.",
        "Gate {gate}: {start} to {end}, {seats} seats.",
    ),
}
_HEADERS = ("Extract {keys} as JSON: {text}\n", "JSON with {keys}: {text}\n")
_INTEGERS = {"age", "quantity", "price", "hour", "gate", "seats"}


def _values(kind: str, rng: Random) -> dict[str, str | int]:
    if kind == "person":
        return {"name": rng.choice(NAMES), "age": rng.randint(1, 99), "city": rng.choice(CITIES)}
    if kind == "order":
        return {
            "name": rng.choice(NAMES),
            "item": rng.choice(ITEMS),
            "quantity": rng.randint(2, 40),
            "price": rng.randint(2, 99),
        }
    if kind == "pet":
        owner, name = rng.sample(NAMES, 2)
        return {
            "owner": owner,
            "pet": rng.choice(PETS),
            "name": name,
            "colour": rng.choice(COLOURS),
        }
    if kind == "meeting":
        return {
            "name": rng.choice(NAMES),
            "day": rng.choice(WEEKDAYS),
            "hour": rng.randint(8, 20),
            "room": f"{rng.choice('ABCDEF')}{rng.randint(1, 30)}",
        }
    start, end = rng.sample(CITIES, 2)
    return {"start": start, "end": end, "seats": rng.randint(1, 9), "gate": rng.randint(1, 60)}


def compact(value: object) -> str:
    """JSON without white space, the only form the models are taught."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def object_schema(properties: Mapping[str, object]) -> dict[str, object]:
    """A closed object schema that requires every property."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def make_json(rng: Random) -> Item:
    """A sentence about one of five kinds of record, and two to four of its fields as JSON."""
    kind = rng.choice(tuple(_TEMPLATES))
    values = _values(kind, rng)
    keys = rng.sample(tuple(values), rng.randint(2, len(values)))
    text = rng.choice(_TEMPLATES[kind]).format(**values)
    prompt = rng.choice(_HEADERS).format(keys=", ".join(keys), text=text)
    schema = object_schema(
        {key: {"type": "integer" if key in _INTEGERS else "string"} for key in keys}
    )
    return Item(
        task="json",
        prompt=prompt,
        answer=compact({key: values[key] for key in keys}),
        key=f"json|{kind}|{compact(values)}",
        constraint={"json_schema": schema},
    )
