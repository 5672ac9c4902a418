"""The three questions of the demonstration, put to the embedded model.

In each the model's favourite beginnings lead to what the constraint rules out later on. A mask sees
only the next token, so it takes such a beginning and then forces the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from midstream.middleware.constraints import Constraint, JsonSchema, Predicate, Regex
from midstream.middleware.sampling import AWRS, Mask, Sampler


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, a constraint on the answer, and a test of finished answers made without midstream.

    masking: the sampler whose draws, their weights thrown away, are masked decoding.
    """

    name: str
    prompt: str
    wanted: str
    constraint: Constraint
    accepts: Callable[[str], bool]
    masking: Sampler
    max_new_tokens: int

    @property
    def is_data(self) -> bool:
        """Whether its constraint can be sent to a server, which takes no code."""
        return not isinstance(self.constraint, Predicate)


MULTIPLE = 17
_CITIES = "San (Antonio|Marino)|Rome|Porto"
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"const": "Italy"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}


def in_italy(text: str) -> bool:
    """Whether a text is the compact JSON of a place in Italy."""
    try:
        record = json.loads(text)
    except ValueError:
        return False
    if not isinstance(record, dict) or list(record) != ["city", "country"]:
        return False
    compact = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    return record["country"] == "Italy" and isinstance(record["city"], str) and compact == text


def is_multiple(text: str | bytes) -> bool:
    """Whether a text is a number from 10 to 99 and a multiple of `MULTIPLE`."""
    digits = len(text) == 2 and text.isascii() and text.isdigit()
    return digits and int(text) >= 10 and int(text) % MULTIPLE == 0


def may_become_multiple(text: bytes) -> bool:
    """Whether `is_multiple` is true of some number that begins so."""
    return any(is_multiple(number) for number in _NUMBERS if number.startswith(text))


_NUMBERS = [b"%d" % number for number in range(10, 100)]


TASKS: tuple[Task, ...] = (
    Task(
        name="A place in Italy",
        prompt="Guest 41 describes a place as JSON:\n",
        wanted='JSON Schema: {"city": string, "country": "Italy"}',
        constraint=JsonSchema(_SCHEMA),
        accepts=in_italy,
        masking=Mask(),
        max_new_tokens=24,
    ),
    Task(
        name="One of four cities",
        prompt="Guest 41 picks a city:\n",
        wanted=f"regular expression: {_CITIES}",
        constraint=Regex(_CITIES),
        accepts=lambda text: re.fullmatch(_CITIES, text) is not None,
        masking=Mask(),
        max_new_tokens=12,
    ),
    Task(
        name=f"A multiple of {MULTIPLE}",
        prompt="Guest 41 picks a number:\n",
        wanted=f"a Python function that checks for multiples of {MULTIPLE} from 10 to 99",
        constraint=Predicate(prefix=may_become_multiple, complete=is_multiple),
        accepts=is_multiple,
        masking=AWRS(),
        max_new_tokens=6,
    ),
)
"""Their constraints cover a schema, an automaton, and a black box that has no mask."""
