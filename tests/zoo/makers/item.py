"""One question with its answer, and the rule that keeps held-out questions out of training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

HELD_OUT_ONE_IN = 16


@dataclass(frozen=True, slots=True)
class Item:
    """A document: `prompt` ends in a newline, `answer` begins right after it.

    `key` names the parameters without the wording: one key has one side of the split, however it
    is phrased. `constraint` is {"regex" | "choice" | "json_schema": value} or None.
    """

    task: str
    prompt: str
    answer: str
    key: str
    constraint: Mapping[str, object] | None = None


Maker = Callable[[Random], Item]


def is_held_out(key: str) -> bool:
    """Whether a key belongs to the suite: one in `HELD_OUT_ONE_IN`, by its hash."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0
