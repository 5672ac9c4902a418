"""Which ids end a sequence: a model's files name them in up to three places, which may differ."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midstream.middleware.errors import VocabularyError
from midstream.middleware.token_bytes import wrapped_tokenizer

_NAMES = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>")
"""What the token is called, for tokenizers that keep no record of which one it is."""


class VocabularyWarning(UserWarning):
    """The places that name the end-of-sequence ids of one model differ."""


@dataclass(frozen=True, slots=True)
class TokenizerFolder:
    """What a folder with tokenizer.json says; {} for settings whose file is absent."""

    backend_tokenizer: Any  # tokenizers.Tokenizer
    eos_token_id: int | None
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]


def open_tokenizer_folder(path: Path) -> TokenizerFolder:
    """Read tokenizer.json and, where they lie beside it, the three files of settings."""
    accepted = "a tokenizer object, or a folder that holds a valid tokenizer.json"
    if not (path / "tokenizer.json").is_file():
        raise VocabularyError("tokenizer", str(path), accepted)
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the extension module raises bare Exception
        raise VocabularyError("tokenizer", f"{path} ({error})", accepted) from error
    named = _read_settings(path / "tokenizer_config.json").get("eos_token")
    name = named.get("content") if isinstance(named, Mapping) else named
    return TokenizerFolder(
        backend_tokenizer=backend,
        eos_token_id=None if name is None else backend.token_to_id(name),
        config=_read_settings(path / "config.json"),
        generation_config=_read_settings(path / "generation_config.json"),
    )


def _read_settings(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VocabularyError("tokenizer", f"{path} ({error})", "valid JSON") from error
    if not isinstance(settings, dict):
        raise VocabularyError("tokenizer", str(path), "a JSON object")
    return settings


def end_of_sequence_ids(
    tokenizer: Any, config: Any = None, generation_config: Any = None
) -> tuple[int, ...]:
    """The ids that generation_config names, else those of config, else those of the tokenizer.

    config, generation_config: objects of transformers, or mappings; their `eos_token_id` is one
    id, several, or None. tokenizer: an object that `Vocabulary.from_tokenizer` takes; its own is
    the id that it names, else the only token in it that bears one of the usual names.

    VocabularyWarning where two of the three name different sets of ids. VocabularyError where none
    names any: a model that can't end its text gives every text weight 0.
    """
    named = {
        "generation_config": _declared(generation_config),
        "config": _declared(config),
        "tokenizer": _of_tokenizer(tokenizer),
    }
    given = {place: ids for place, ids in named.items() if ids}
    if not given:
        raise VocabularyError(
            "eos_ids", None, "ids, since nothing says which token of this tokenizer ends a sequence"
        )
    chosen = next(iter(given))
    if any(set(ids) != set(given[chosen]) for ids in given.values()):
        shown = ", ".join(f"{place} {list(ids)}" for place, ids in given.items())
        message = f"end-of-sequence ids differ: {shown}; taken: {chosen}. Pass eos_ids to decide"
        warnings.warn(message, VocabularyWarning, stacklevel=3)
    return given[chosen]


def _declared(settings: Any) -> tuple[int, ...]:
    """`eos_token_id` of a configuration, or of the text part of a multimodal one."""
    if settings is None:
        return ()
    found = _field(settings, "eos_token_id")
    if found is None:
        return _declared(_field(settings, "text_config"))
    return _as_ids(found)


def _field(settings: Any, name: str) -> Any:
    if isinstance(settings, Mapping):
        return settings.get(name)
    return getattr(settings, name, None)


def _as_ids(found: Any) -> tuple[int, ...]:
    try:
        ids = found if isinstance(found, Iterable) else (found,)
        return tuple(operator.index(token) for token in ids)
    except TypeError:
        raise VocabularyError("eos_token_id", found, "one id or a sequence of ids") from None


def _of_tokenizer(tokenizer: Any) -> tuple[int, ...]:
    for name in ("eos_token_id", "eos_id", "eot_token"):
        try:
            found = getattr(tokenizer, name, None)
        except KeyError:  # tiktoken's property on an encoding without that token
            continue
        found = found() if callable(found) else found
        if found is not None and found != -1:  # SentencePiece says -1 for none
            return _as_ids(found)
    if hasattr(tokenizer, "token_to_id"):
        return _by_name(tokenizer)
    inner = wrapped_tokenizer(tokenizer)
    return () if inner is None else _of_tokenizer(inner)


def _by_name(tokenizer: Any) -> tuple[int, ...]:
    """`</s>` and `<eos>` may be text, unless the tokenizer holds them for special."""
    special = {token for token, added in _added(tokenizer).items() if added.special}
    found = [(name, tokenizer.token_to_id(name)) for name in _NAMES]
    ids = [
        token
        for name, token in found
        if token is not None and (token in special or name.startswith("<|"))
    ]
    return tuple(ids) if len(ids) == 1 else ()


def _added(tokenizer: Any) -> Mapping[int, Any]:
    inner = getattr(tokenizer, "_tokenizer", tokenizer)  # tokenizers.implementations wrap one
    added: Mapping[int, Any] = inner.get_added_tokens_decoder()
    return added
