"""The bytes of every token of a `tokenizers` tokenizer, read from its JSON state.

The decoder of the state says what one token spells: GPT-2's alphabet of bytes, the mark that
SentencePiece writes for a space, `<0xNN>` for one byte. An added token is no product of the model,
so the decoder does not apply: it spells the text that it matches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from midstream.middleware.errors import VocabularyError

Json: TypeAlias = Mapping[str, Any]
Speller: TypeAlias = Callable[[str], bytes]

SPACE_MARK = "\u2581"  # what SentencePiece writes for a space
EXACT = (
    "a tokenizer whose tokens have exact bytes: byte-level BPE, SentencePiece (with byte fallback, "
    "or at least with a mark for every space), tiktoken"
)
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _gpt2_alphabet() -> dict[int, str]:
    """Code point -> the byte as a Latin-1 character. What is not in the alphabet leaves Latin-1."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = dict.fromkeys(others, "\uffff")
    table.update({0x100 + rank: chr(byte) for rank, byte in enumerate(others)})
    return table


_ALPHABET = _gpt2_alphabet()


def spell_byte_level(token: str) -> bytes:
    """A token in GPT-2's alphabet of bytes; one that leaves the alphabet is literal text."""
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def spell_byte_piece(token: str) -> bytes | None:
    """The byte of a piece `<0xNN>`, else None."""
    found = _BYTE_PIECE.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else None


def spell_piece(token: str) -> bytes:
    """A SentencePiece piece that is no control, unknown or byte piece."""
    return token.replace(SPACE_MARK, " ").encode()


def read_json_state(tokenizer: Any) -> tuple[dict[int, bytes], set[int]]:
    """Bytes by id, and the special ids, of an object with the `to_str` of `tokenizers.Tokenizer`.

    Special are the added tokens that say so and the unknown token, which stands for any text.
    Raises VocabularyError where tokens have no exact bytes.
    """
    try:
        state = json.loads(tokenizer.to_str())
    except Exception as error:  # the extension module raises bare Exception for a custom component
        raise VocabularyError("tokenizer", f"one without a JSON state ({error})", EXACT) from error
    model = state["model"]
    spell = _speller(state)
    entries = model["vocab"]
    if isinstance(entries, list):  # Unigram: [piece, score], the id is the place
        pieces = {token: entry[0] for token, entry in enumerate(entries)}
    else:
        pieces = {token: piece for piece, token in entries.items()}
    spellings = {token: spell(piece) for token, piece in pieces.items()}
    unknown = model.get("unk_id")
    if unknown is None and model.get("unk_token") is not None:
        unknown = tokenizer.token_to_id(model["unk_token"])
    special = set() if unknown is None else {int(unknown)}
    for added in state["added_tokens"]:
        spellings[added["id"]] = _spell_added(added, state, tokenizer)
        if added["special"]:
            special.add(added["id"])
    return spellings, special


def _spell_added(added: Json, state: Json, tokenizer: Any) -> bytes:
    """The text that an added token matches.

    One that is `normalized` is normalised itself and matched against normalised text. Of a
    normaliser only what changes the alphabet is undone; the rest has no inverse.
    """
    content: str = added["content"]
    if not added["normalized"] or state["normalizer"] is None:
        return content.encode()
    kinds = list(_flat(state["normalizer"]))
    if any(kind["type"] == "ByteLevel" for kind in kinds):
        return spell_byte_level(tokenizer.normalizer.normalize_str(content))
    if any(_marks_spaces(kind) for kind in kinds):
        return spell_piece(tokenizer.normalizer.normalize_str(content))
    return content.encode()


def _flat(component: Json | None) -> Iterator[Json]:
    """The steps of a component, sequences opened."""
    if component is None:
        return
    nested = {"decoders", "normalizers", "pretokenizers"} & component.keys()
    if not nested:
        yield component
    for name in nested:
        for step in component[name]:
            yield from _flat(step)


def _marks_spaces(step: Json) -> bool:
    """Whether a normaliser or pre-tokenizer writes the mark for a space."""
    if step["type"] == "Metaspace":
        return bool(step["replacement"] == SPACE_MARK)
    return step["type"] == "Replace" and (step["pattern"], step["content"]) == (
        {"String": " "},
        SPACE_MARK,
    )


def _speller(state: Json) -> Speller:
    model = state["model"]
    if model["type"] == "WordPiece":
        raise _inexact("a WordPiece tokenizer, whose tokens do not hold the spaces between words")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            kind = model["type"]
            raise _inexact(f"a {kind} with {name} {model[name]!r}, which stands for no bytes")
    steps = list(_flat(state["decoder"])) or _implied_decoder(state)
    if model.get("byte_fallback") and not any(step["type"] == "ByteFallback" for step in steps):
        steps.append({"type": "ByteFallback"})
    return _chain(steps)


def _implied_decoder(state: Json) -> list[Json]:
    """What undoes the first half of a tokenizer that was given no decoder."""
    steps = [*_flat(state["normalizer"]), *_flat(state["pre_tokenizer"])]
    if any(step["type"] == "ByteLevel" for step in steps):
        return [{"type": "ByteLevel"}]
    if any(_marks_spaces(step) for step in steps):
        return [{"type": "Metaspace", "replacement": SPACE_MARK}]
    kind = state["model"]["type"]
    raise _inexact(f"a {kind} tokenizer without a decoder, which joins its tokens with spaces")


def _chain(steps: list[Json]) -> Speller:
    """One function of one token out of a chain of decoder steps."""
    replaced: list[tuple[str, str]] = []
    byte_level = byte_fallback = fused = False
    for step in steps:
        kind = step["type"]
        if kind == "Metaspace":
            replaced.append((step["replacement"], " "))
        elif kind == "Replace" and "String" in step["pattern"]:
            replaced.append((step["pattern"]["String"], step["content"]))
        elif kind in ("ByteLevel", "ByteFallback", "Fuse"):
            byte_level |= kind == "ByteLevel"
            byte_fallback |= kind == "ByteFallback"
            fused |= kind == "Fuse"
        elif not (kind == "Strip" and fused):  # once fused, Strip takes the tokenizer's own space
            raise _inexact(f"one with the decoder step {kind}, which no single token undoes")

    def spell(token: str) -> bytes:
        byte = spell_byte_piece(token) if byte_fallback else None
        if byte is not None:
            return byte
        for old, new in replaced:
            token = token.replace(old, new)
        return spell_byte_level(token) if byte_level else token.encode()

    return spell


def _inexact(got: str) -> VocabularyError:
    return VocabularyError("tokenizer", got, EXACT)
