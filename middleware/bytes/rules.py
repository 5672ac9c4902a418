"""What a tokenizer does to a text, read from its own description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from midstream.middleware.bytes.merges import Merges
from midstream.middleware.bytes.splitting.characters import Engine, Members
from midstream.middleware.bytes.splitting.cuts import Cut

Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """All that decides which token strings a tokenizer makes.

    cuts: its pre-tokenizers, outermost first, in the dialect of `engine`.
    spelled: for a tokenizer of characters, those that have a token of their own; every other is
        spelled byte by byte. None: tokens are made of bytes.
    single_bytes: the tokens that spell such bytes.
    marked: the pre-tokenizers see SentencePiece's mark for a space.
    whole: the tokens that a piece of just their bytes becomes, whatever the merges make.
    walls: texts that the tokenizer takes out before anything else.
    added: the tokens that spell such a text, no more and no less.
    composed: it puts texts into normal form C.
    """

    merges: Merges
    cuts: tuple[Cut, ...]
    engine: Engine
    spelled: Members | None = None
    single_bytes: frozenset[int] = frozenset()
    marked: bool = False
    whole: frozenset[int] = frozenset()
    walls: tuple[bytes, ...] = ()
    added: frozenset[int] = frozenset()
    composed: bool = False


def flat(component: Json | None, name: str) -> Iterator[Json]:
    """The steps of a normaliser or pre-tokenizer, sequences opened; `name` is their key."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for step in component[name]:
        yield from flat(step, name)
