"""Which code points a regular expression's classes hold, as the tokenizer's own engine says.

Engines differ in their Unicode version and in what case-insensitive letters match, so the classes
are not computed from a table of Python's: one string of all code points is given to the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.undecidable import Undecidable

Engine: TypeAlias = Literal["tokenizers", "tiktoken"]
Members: TypeAlias = npt.NDArray[np.bool_]  # [0x110000]

CODE_POINTS = 0x110000
SURROGATES = (0xD800, 0xE000)


@dataclass(frozen=True, slots=True, eq=False)
class Characters:
    """Code points in classes: two of one class are alike to every atom that was asked for.

    count: the number of classes, C.
    of: uint8 or uint16 [0x110000], the class of each code point (of a surrogate: meaningless).
    atoms: of each atom the classes it holds, as bits.
    starts: int64 [R], where each run of code points of one class begins; runs_class: [R].
    """

    count: int
    of: npt.NDArray[np.uint8]
    atoms: Mapping[str, int]
    starts: npt.NDArray[np.int64]
    runs_class: npt.NDArray[np.uint8]

    def between(self, low: int, high: int) -> int:
        """The classes of the code points from `low` to `high` inclusive, as bits; no surrogates."""
        if low < SURROGATES[0] <= high:
            high_part = self.between(SURROGATES[1], high) if high >= SURROGATES[1] else 0
            return self.between(low, SURROGATES[0] - 1) | high_part
        if SURROGATES[0] <= low < SURROGATES[1]:
            return self.between(SURROGATES[1], high) if high >= SURROGATES[1] else 0
        first, last = np.searchsorted(self.starts, [low, high], side="right") - 1
        bits = 0
        for found in set(self.runs_class[first : last + 1].tolist()):
            bits |= 1 << found
        return bits

    def member(self, name: str, character: str) -> bool:
        """Whether the atom holds this character."""
        return bool(self.atoms[name] >> int(self.of[ord(character)]) & 1)


def partition(atoms: Mapping[str, Members]) -> Characters:
    """The coarsest classes of code points that the atoms tell apart (256 at the most)."""
    if len(atoms) > 62:
        raise Undecidable(f"a pre-tokenizer of {len(atoms)} different character classes")
    code = np.zeros(CODE_POINTS, np.int64)
    for place, members in enumerate(atoms.values()):
        code |= members.astype(np.int64) << place
    code[SURROGATES[0] : SURROGATES[1]] = code[SURROGATES[0] - 1]  # no run of their own
    starts = np.flatnonzero(np.diff(code, prepend=code[0] ^ 1))
    kinds, runs_class = np.unique(code[starts], return_inverse=True)
    if kinds.size > 255:
        raise Undecidable(f"a pre-tokenizer that tells {kinds.size} classes of characters apart")
    masks = {
        name: sum(1 << place for place, kind in enumerate(kinds.tolist()) if kind >> bit & 1)
        for bit, name in enumerate(atoms)
    }
    small = runs_class.reshape(-1).astype(np.uint8)
    of = np.repeat(small, np.diff(starts, append=CODE_POINTS))
    return Characters(kinds.size, of, masks, starts, small)


@lru_cache(maxsize=256)
def members_of(atom: str, engine: Engine) -> Members:
    """The code points that an atom of a regular expression (one character long) matches."""
    everything = _all_code_points()
    try:
        found = _by_tokenizers(atom) if engine == "tokenizers" else _by_tiktoken(atom)
    except Exception as error:  # both libraries raise bare exceptions for what does not parse
        raise Undecidable(f"a character class {atom} that its engine refuses: {error}") from error
    members = np.zeros(CODE_POINTS, np.bool_)
    members[found] = True
    members.setflags(write=False)
    assert len(everything) == CODE_POINTS - (SURROGATES[1] - SURROGATES[0])
    return members


@lru_cache(maxsize=1)
def _all_code_points() -> str:
    return "".join(map(chr, [*range(SURROGATES[0]), *range(SURROGATES[1], CODE_POINTS)]))


def _by_tokenizers(atom: str) -> npt.NDArray[np.int64]:
    """A decoder that drops what matches leaves the others."""
    from tokenizers import Regex, decoders

    left = decoders.Replace(Regex(f"(?:{atom})+"), "").decode([_all_code_points()])
    others = np.zeros(CODE_POINTS, np.bool_)
    others[_points(left)] = True
    others[SURROGATES[0] : SURROGATES[1]] = True
    return np.flatnonzero(~others)


def _by_tiktoken(atom: str) -> npt.NDArray[np.int64]:
    """An encoding leaves out what its pattern does not match."""
    import tiktoken

    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding(
        "bytes", pat_str=f"(?:{atom})+", mergeable_ranks=ranks, special_tokens={}
    )
    return _points(bytes(encoding.encode_ordinary(_all_code_points())).decode())


def _points(text: str) -> npt.NDArray[np.int64]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
