"""The rules of a SentencePiece BPE model with byte fallback, from its own file."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from midstream.middleware.bytes.merges import Merges, derive
from midstream.middleware.bytes.rules import Rules
from midstream.middleware.bytes.splitting.characters import CODE_POINTS
from midstream.middleware.bytes.undecidable import Undecidable
from midstream.middleware.tokenizer_json import SPACE_MARK

_BPE = 2  # TrainerSpec.model_type
_NORMAL, _USER, _UNUSED, _BYTE = 1, 4, 5, 6  # SentencePiece.type


@dataclass(slots=True)
class _Pieces:
    """The entries of a model by kind: ordinary ones by text, bytes, the texts of the user's own."""

    tokens: dict[str, int] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    bytes_: list[int] = field(default_factory=list)
    walls: set[bytes] = field(default_factory=set)


def sentencepiece_rules(processor: Any, size: int) -> Rules:
    """The rules of a `SentencePieceProcessor`.

    Any two pieces that make a piece may be merged, in the order of its score. Raises Undecidable
    for another model than BPE, and for a normaliser that changes text.
    """
    fields = list(_fields(processor.serialized_model_proto()))
    _check_specs(_spec(fields, 2), _spec(fields, 3))
    pieces = _read_pieces([value for number, value in fields if number == 1])
    letters = {piece for piece in pieces.tokens if len(piece) == 1}
    spelled = np.zeros(CODE_POINTS, np.bool_)
    spelled[[ord(" "), ord(SPACE_MARK), *map(ord, letters)]] = True
    return Rules(
        merges=_merges(pieces, letters, size),
        cuts=(),
        engine="tokenizers",
        spelled=spelled,
        single_bytes=frozenset(pieces.bytes_),
        marked=True,
        walls=tuple(sorted(pieces.walls)),
    )


def _read_pieces(entries: list[bytes]) -> _Pieces:
    pieces = _Pieces()
    for token, entry in enumerate(entries):
        known = dict(_fields(entry))
        kind = known.get(3, _NORMAL)
        if kind == _UNUSED:
            raise Undecidable("a SentencePiece model with unused pieces")
        if kind == _BYTE:
            pieces.bytes_.append(token)
        elif kind == _USER:
            pieces.walls.add(known[1].decode().replace(SPACE_MARK, " ").encode())
        elif kind == _NORMAL:
            pieces.tokens[known[1].decode()] = token
            pieces.scores[token] = struct.unpack("<f", known.get(2, b"\0\0\0\0"))[0]
    if len(pieces.bytes_) < 256:
        raise Undecidable("a SentencePiece model without bytes to fall back to")
    return pieces


def _merges(pieces: _Pieces, letters: set[str], size: int) -> Merges:
    scores = sorted(set(pieces.scores.values()), reverse=True)
    rank_of = {score: rank for rank, score in enumerate(scores)}
    ranks: dict[int, int] = {}
    made: dict[int, int] = {}
    base: dict[int, list[int]] = {token: [token] for token in pieces.bytes_}
    for piece, token in pieces.tokens.items():
        if not letters.issuperset(piece):
            raise Undecidable(f"a SentencePiece piece {piece!r} with a letter that is none")
        base[token] = [pieces.tokens[letter] for letter in piece]
        for cut in range(1, len(piece)):
            left, right = pieces.tokens.get(piece[:cut]), pieces.tokens.get(piece[cut:])
            if left is not None and right is not None:
                key = left * size + right
                ranks[key], made[key] = rank_of[pieces.scores[token]], token
    return derive(size, ranks, made, base)


def _spec(fields: list[tuple[int, Any]], number: int) -> dict[int, Any]:
    return dict(_fields(next((value for found, value in fields if found == number), b"")))


def _check_specs(trainer: dict[int, Any], normaliser: dict[int, Any]) -> None:
    """Field numbers of sentencepiece_model.proto; what is absent has its default."""
    if trainer.get(3, 1) != _BPE:
        raise Undecidable("a SentencePiece model that is no BPE")
    if trainer.get(24, 0):
        raise Undecidable("a SentencePiece model that marks spaces behind words")
    if normaliser.get(2):
        raise Undecidable(f"the SentencePiece normaliser {normaliser.get(1, b'')!r}")
    if normaliser.get(4, 1):
        raise Undecidable("a SentencePiece model that removes extra white space")
    if not normaliser.get(5, 1):
        raise Undecidable("a SentencePiece model without a mark for spaces")


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protobuf message; of floats the bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            size, at = _varint(message, at)
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
