"""The bytes of every token of any supported tokenizer object, told apart by what it can do.

No tokenizer library is imported: an object that has the methods of one was made by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from midstream.middleware.errors import VocabularyError
from midstream.middleware.tokenizer_json import (
    EXACT,
    read_json_state,
    spell_byte_piece,
    spell_piece,
)

PrefixSpace: TypeAlias = Literal["never", "always", "unless_present"]
"""Whether a tokenizer puts a space of its own before the text that it encodes."""

_WRAPPERS = ("backend_tokenizer", "instruct_tokenizer", "tokenizer", "model", "_model")
"""Where transformers, mistral-common and tokenizers that come with a model keep the inner one."""

_ROLES = ("bos", "eos", "unk", "sep", "cls", "mask")


@dataclass(frozen=True, slots=True)
class TokenTable:
    """What a tokenizer says of its ids. Ids that it does not use have no bytes."""

    token_bytes: list[bytes]
    special_ids: frozenset[int]
    encode: Callable[[str], list[int]]  # without special tokens around the text

    def prefix_space(self) -> PrefixSpace:
        """Found by trying, since libraries, their versions and options differ in it."""
        if not self._spells("a").startswith(b" "):
            return "never"
        return "always" if self._spells(" a").startswith(b"  ") else "unless_present"

    def _spells(self, text: str) -> bytes:
        try:
            return b"".join([self.token_bytes[token] for token in self.encode(text)])
        except Exception:  # what a `tokenizers` model without an unknown token raises for a letter
            return b""


def read_token_table(tokenizer: Any) -> TokenTable:
    """The table of a tokenizer object; `Vocabulary.from_tokenizer` says which are taken.

    Raises VocabularyError where tokens have no exact bytes, or for an object of another kind.
    """
    if hasattr(tokenizer, "to_str") and hasattr(tokenizer, "token_to_id"):
        return _from_tokenizers(tokenizer)
    if hasattr(tokenizer, "backend_tokenizer"):
        return _from_fast(tokenizer)
    if hasattr(tokenizer, "decode_single_token_bytes"):
        return _from_tiktoken(tokenizer)
    if hasattr(tokenizer, "id_to_byte_piece"):
        return _from_tekken(tokenizer)
    if hasattr(tokenizer, "IsControl"):
        return _from_sentencepiece(tokenizer)
    if hasattr(tokenizer, "sp_model"):
        return _from_slow(tokenizer, _piece_speller(tokenizer.sp_model))
    if type(tokenizer).__name__ == "ByT5Tokenizer":
        return _from_slow(tokenizer, lambda token: token.encode("latin-1"))
    inner = wrapped_tokenizer(tokenizer)
    if inner is None:
        raise VocabularyError("tokenizer", f"an object of {type(tokenizer)}", EXACT)
    return read_token_table(inner)


def wrapped_tokenizer(tokenizer: Any) -> Any | None:
    """The tokenizer that a wrapper holds, or None."""
    held = (getattr(tokenizer, name, None) for name in _WRAPPERS)
    return next((inner for inner in held if inner is not None), None)


def _table(
    spellings: Mapping[int, bytes], special_ids: set[int], encode: Callable[[str], list[int]]
) -> TokenTable:
    if not spellings:
        raise VocabularyError("tokenizer", "one without tokens", EXACT)
    token_bytes = [b""] * (max(spellings) + 1)
    for token, spelling in spellings.items():
        token_bytes[token] = spelling
    for token in special_ids:
        token_bytes[token] = b""
    return TokenTable(token_bytes, frozenset(special_ids), encode)


def _from_tokenizers(tokenizer: Any) -> TokenTable:
    spellings, special = read_json_state(tokenizer)
    return _table(
        spellings, special, lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
    )


def _from_fast(tokenizer: Any) -> TokenTable:
    """A fast tokenizer of transformers may name special tokens that are ordinary to its backend.

    A padding token that is nothing else stays what the backend says: it is often an ordinary token
    that was put to use ("!" in many models made from Llama 3).
    """
    backend = read_token_table(tokenizer.backend_tokenizer)
    named = set(getattr(tokenizer, "all_special_ids", ()))
    roles = [getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES]
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding not in roles:
        named.discard(padding)
    spellings = dict(enumerate(backend.token_bytes))
    special = {token for token in named if token in spellings}
    return _table(spellings, special | backend.special_ids, backend.encode)


def _from_tiktoken(encoding: Any) -> TokenTable:
    spellings = {}
    for token in range(encoding.max_token_value + 1):
        try:
            spellings[token] = encoding.decode_single_token_bytes(token)
        except KeyError:  # ids between the ordinary and the special tokens may be free
            continue
    special = {encoding.encode_single_token(name) for name in encoding.special_tokens_set}
    return _table(spellings, special, encoding.encode_ordinary)


def _from_tekken(tokenizer: Any) -> TokenTable:
    spellings = {token: tokenizer.id_to_byte_piece(token) for token in range(tokenizer.n_words)}
    special = set(range(tokenizer.num_special_tokens))
    return _table(spellings, special, lambda text: tokenizer.encode(text, bos=False, eos=False))


def _from_sentencepiece(processor: Any) -> TokenTable:
    spell = _piece_speller(processor)
    pieces = [processor.id_to_piece(token) for token in range(processor.get_piece_size())]
    spellings = {token: spell(piece) for token, piece in enumerate(pieces)}
    special = {token for token, spelling in spellings.items() if not spelling}
    return _table(spellings, special, processor.encode)


def _piece_speller(processor: Any) -> Callable[[str], bytes]:
    """Bytes of a piece of a SentencePiece model; b"" for control, unknown and unused pieces."""

    def spell(piece: str) -> bytes:
        token = processor.piece_to_id(piece)
        if processor.IsControl(token) or processor.IsUnknown(token) or processor.IsUnused(token):
            return b""
        byte = spell_byte_piece(piece) if processor.IsByte(token) else None
        return spell_piece(piece) if byte is None else byte

    return spell


def _from_slow(tokenizer: Any, spell: Callable[[str], bytes]) -> TokenTable:
    """A tokenizer of transformers written in Python: its own numbering, its own added tokens."""
    added = tokenizer.added_tokens_decoder
    special = {token for token, entry in added.items() if entry.special}
    spellings = {token: entry.content.encode() for token, entry in added.items()}
    for piece, token in tokenizer.get_vocab().items():
        if token not in spellings:
            spellings[token] = spell(piece)
    return _table(
        spellings, special, lambda text: list(tokenizer.encode(text, add_special_tokens=False))
    )
