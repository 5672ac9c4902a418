"""The bytes of every token id, and which ids end a sequence or are control tokens."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import numpy as np

from midstream.middleware.end_of_sequence import (
    VocabularyWarning,
    end_of_sequence_ids,
    open_tokenizer_folder,
)
from midstream.middleware.errors import VocabularyError
from midstream.middleware.token_bytes import PrefixSpace, read_token_table

__all__ = ["PrefixSpace", "Vocabulary", "VocabularyWarning", "end_of_sequence_ids"]


@dataclass(frozen=True, slots=True, init=False, eq=False, repr=False, weakref_slot=True)
class Vocabulary:
    """The exact bytes of every id of a row of logits, immutable and shared between threads.

    token_bytes: the bytes that id t adds to the text; b"" for a special token.
    special_ids: ascending; every id that spells nothing: control tokens, end of sequence, padding
        beyond the tokenizer. An id given with empty bytes is special in any case, since it could be
        repeated for ever without adding to the text. Bytes given for a special id are dropped.
    eos_ids: in the caller's order; all act as one symbol, of which the first is drawn. May be
        empty: then no text ever ends.
    prefix_space: whether the tokenizer adds a space before a text; see `spelled`.
    mask_words: (V + 31) // 32, the words of a mask over V ids.
    fingerprint: hex SHA-256 of the bytes and ids, the same in every process. Equality and hash go
        by it; `prefix_space`, which changes no token, is not in it.

    Raises VocabularyError for an empty vocabulary, entries that are not bytes, or ids out of range.
    """

    token_bytes: tuple[bytes, ...]
    eos_ids: tuple[int, ...]
    special_ids: tuple[int, ...]
    prefix_space: PrefixSpace
    mask_words: int
    fingerprint: str

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        *,
        eos_ids: Sequence[int],
        special_ids: Sequence[int] = (),
        prefix_space: PrefixSpace = "never",
    ) -> None:
        given = _checked_bytes(token_bytes)
        eos = tuple(dict.fromkeys(_checked_ids("eos_ids", eos_ids, len(given))))
        special = {*eos, *_checked_ids("special_ids", special_ids, len(given))}
        special.update(token for token, spelling in enumerate(given) if not spelling)
        for token in special:
            given[token] = b""
        if prefix_space not in get_args(PrefixSpace):
            raise VocabularyError("prefix_space", prefix_space, str(get_args(PrefixSpace)))
        values: dict[str, object] = {
            "token_bytes": tuple(given),
            "eos_ids": eos,
            "special_ids": tuple(sorted(special)),
            "prefix_space": prefix_space,
            "mask_words": (len(given) + 31) // 32,
        }
        values["fingerprint"] = _fingerprint(given, eos, tuple(sorted(special)))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.token_bytes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return (
            f"Vocabulary({len(self)} tokens, {len(self.special_ids)} special, "
            f"eos_ids={self.eos_ids}, fingerprint={self.fingerprint[:12]})"
        )

    def decode(self, token_ids: Iterable[int]) -> bytes:
        """The bytes that a run of tokens spells. Ids beyond the vocabulary raise IndexError."""
        return b"".join([self.token_bytes[token] for token in token_ids])

    def spelled(self, text: bytes) -> bytes:
        """What the tokens of an encoding of `text` spell: `text`, after the tokenizer's space."""
        adds = self.prefix_space == "always" or (
            self.prefix_space == "unless_present" and not text.startswith(b" ")
        )
        return b" " + text if adds and text else text

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, *, eos_ids: Sequence[int] | None = None, size: int | None = None
    ) -> Vocabulary:
        """The vocabulary of a tokenizer.

        tokenizer: an object of transformers, tokenizers, sentencepiece, tiktoken or mistral-common,
            or the path of a folder that holds tokenizer.json.
        eos_ids: None takes those of `end_of_sequence_ids`, with the configurations in the folder;
            who has a model passes `end_of_sequence_ids(tokenizer, config, generation_config)`.
        size: the length of the model's row of logits. Ids beyond the tokenizer, and ids that it
            leaves unused, are special with b"" for bytes, so that nothing ever allows them.

        Ordinary added tokens keep the bytes of their text. The tokens of an encoding of `text`,
        joined, are `spelled(text)`, but for what the tokenizer itself loses: text that its
        normaliser changes (for SentencePiece, U+2581 means a space), characters that it does not
        know, and texts with an added token in them (some add a space after it, or strip around it).

        Raises VocabularyError where tokens have no exact bytes (WordPiece, models with a mark for
        the end of a word, tokenizers without a decoder), where nothing names an end of sequence, or
        where `size` is less than the tokenizer's.
        """
        if isinstance(tokenizer, (str, PathLike)):
            folder = open_tokenizer_folder(Path(tokenizer))
            tokenizer, configs = folder, (folder.config, folder.generation_config)
        else:
            configs = ({}, {})
        table = read_token_table(tokenizer)
        if eos_ids is None:
            eos_ids = end_of_sequence_ids(tokenizer, *configs)
        return cls(
            [*table.token_bytes, *_padding(len(table.token_bytes), size)],
            eos_ids=eos_ids,
            special_ids=sorted(table.special_ids),
            prefix_space=table.prefix_space(),
        )


def _padding(tokens: int, size: int | None) -> list[bytes]:
    """Bytes of the ids between the tokenizer's and the model's."""
    if size is None:
        return []
    if not isinstance(size, int) or size < tokens:
        raise VocabularyError(
            "size", size, f"an int of at least {tokens}, the tokenizer's own size"
        )
    return [b""] * (size - tokens)


def _checked_bytes(token_bytes: Sequence[bytes]) -> list[bytes]:
    if isinstance(token_bytes, (str, bytes)) or not len(token_bytes):
        raise VocabularyError("token_bytes", token_bytes, "a sequence of at least one bytes object")
    given = list(token_bytes)
    for token, spelling in enumerate(given):
        if not isinstance(spelling, bytes):
            raise VocabularyError(f"token_bytes[{token}]", spelling, "bytes")
    return given


def _checked_ids(argument: str, ids: Sequence[int], size: int) -> list[int]:
    accepted = f"ids from 0 to {size - 1}"
    try:
        checked = [operator.index(token) for token in ids]
    except TypeError:
        raise VocabularyError(argument, ids, f"a sequence of {accepted}") from None
    for token in checked:
        if not 0 <= token < size:
            raise VocabularyError(argument, token, accepted)
    return checked


def _fingerprint(
    token_bytes: Sequence[bytes], eos_ids: tuple[int, ...], special_ids: tuple[int, ...]
) -> str:
    """Lengths come before contents, so that no two vocabularies share one stream of bytes."""
    digest = hashlib.sha256(b"midstream vocabulary 1\0")
    lengths = [len(spelling) for spelling in token_bytes]
    for numbers in (lengths, eos_ids, special_ids):
        digest.update(np.asarray([len(numbers), *numbers], dtype="<u8").tobytes())
    digest.update(b"".join(token_bytes))
    return digest.hexdigest()
