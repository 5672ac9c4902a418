"""The rules of a tiktoken encoding, and of mistral-common's tekken, which holds one."""

from __future__ import annotations

from typing import Any

from midstream.middleware.bytes.merges import derive
from midstream.middleware.bytes.rules import Rules
from midstream.middleware.bytes.splitting.cuts import Pattern
from midstream.middleware.bytes.splitting.pattern import parse
from midstream.middleware.bytes.undecidable import Undecidable


def tiktoken_rules(encoding: Any, size: int, *, first: int) -> Rules:
    """The rules of an `Encoding`, whose tokens are numbered from `first` on.

    Any two tokens whose bytes make a token may be merged, at its rank; a piece that is a token is
    looked up before. Special tokens are no walls: ordinary encoding reads their text as text.
    """
    tokens: dict[bytes, int] = {
        spelling: rank + first for spelling, rank in encoding._mergeable_ranks.items()
    }
    singles = [tokens.get(bytes([byte])) for byte in range(256)]
    if None in singles:
        raise Undecidable("an encoding that lacks some bytes")
    ranks: dict[int, int] = {}
    get = tokens.get
    for spelling, token in tokens.items():
        for cut in range(1, len(spelling)):
            left = get(spelling[:cut])
            if left is not None:
                right = get(spelling[cut:])
                if right is not None:
                    ranks[left * size + right] = token
    base = {
        token: [tokens[spelling[at : at + 1]] for at in range(len(spelling))]
        for spelling, token in tokens.items()
    }
    return Rules(
        merges=derive(size, ranks, ranks, base),  # a token's number is its rank
        cuts=(Pattern(parse(encoding._pat_str, "tiktoken"), True),),
        engine="tiktoken",
        whole=frozenset(tokens.values()),
    )
