"""The rules of any tokenizer object, told apart by what it can do, as `token_bytes` does."""

from __future__ import annotations

import hashlib
from typing import Any

from midstream.middleware.bytes.hugging_face_rules import hugging_face_rules
from midstream.middleware.bytes.rules import Rules
from midstream.middleware.bytes.sentencepiece_rules import sentencepiece_rules
from midstream.middleware.bytes.tiktoken_rules import tiktoken_rules
from midstream.middleware.bytes.undecidable import Undecidable
from midstream.middleware.token_bytes import wrapped_tokenizer


def read_rules(tokenizer: Any, size: int) -> Rules:
    """The rules of a tokenizer of transformers, tokenizers, tiktoken, sentencepiece, mistral-common
    for rows of `size` tokens. Raises Undecidable with the reason.
    """
    inner = _inner(tokenizer)
    if hasattr(inner, "to_str"):
        return hugging_face_rules(inner, size)
    if hasattr(inner, "decode_single_token_bytes"):
        return tiktoken_rules(inner, size, first=0)
    if hasattr(inner, "id_to_byte_piece"):
        return tiktoken_rules(inner._model, size, first=inner.num_special_tokens)
    return sentencepiece_rules(inner, size)


def rules_key(tokenizer: Any) -> str:
    """A digest of all that the rules are read from, but for the bytes of the tokens."""
    inner = _inner(tokenizer)
    if hasattr(inner, "to_str"):
        source = inner.to_str().encode()
    elif hasattr(inner, "serialized_model_proto"):
        source = inner.serialized_model_proto()
    else:
        encoding = getattr(inner, "_model", inner)
        source = encoding._pat_str.encode()
    return hashlib.sha256(source).hexdigest()


def _inner(tokenizer: Any) -> Any:
    """The object that encodes, out of its wrappers."""
    if hasattr(tokenizer, "to_str") and hasattr(tokenizer, "token_to_id"):
        return tokenizer
    if hasattr(tokenizer, "backend_tokenizer"):
        return _inner(tokenizer.backend_tokenizer)
    known = ("decode_single_token_bytes", "id_to_byte_piece", "IsControl")
    if any(hasattr(tokenizer, name) for name in known):
        return tokenizer
    inner = wrapped_tokenizer(tokenizer)
    if inner is None:
        raise Undecidable(f"an object of {type(tokenizer)}")
    return _inner(inner)
