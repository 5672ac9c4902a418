"""The rules of a BPE tokenizer of the library `tokenizers`, from its JSON state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from midstream.middleware.bytes.merges import Merges, derive
from midstream.middleware.bytes.rules import Json, Rules, flat
from midstream.middleware.bytes.splitting.characters import CODE_POINTS, Members
from midstream.middleware.bytes.splitting.cuts import (
    Behaviour,
    Cut,
    Pattern,
    edges_of,
)
from midstream.middleware.bytes.splitting.pattern import Atom, parse
from midstream.middleware.bytes.undecidable import Undecidable
from midstream.middleware.tokenizer_json import SPACE_MARK, spell_byte_piece

_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of ByteLevel
)
_PUNCTUATION = r"[!-/:-@\[-`{-~\p{P}]"


def hugging_face_rules(tokenizer: Any, size: int) -> Rules:
    """The rules of an object with `to_str`, for rows of `size` tokens.

    Raises Undecidable for another model than BPE, and for steps that change or lose text.
    """
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    _check_model(model)
    composed, marked = _normaliser(state)
    pre_tokenizers = list(flat(state["pre_tokenizer"], "pretokenizers"))
    byte_level = [step["type"] == "ByteLevel" for step in pre_tokenizers]
    if any(byte_level[:-1]):
        raise Undecidable("a pre-tokenizer after ByteLevel")
    metaspace = [step["type"] == "Metaspace" for step in pre_tokenizers]
    if any(metaspace[1:]):
        raise Undecidable("a pre-tokenizer before Metaspace")
    marked |= any(metaspace)
    cuts = tuple([cut for step in pre_tokenizers for cut in _cuts(step)])
    added = {entry["id"] for entry in state["added_tokens"]}
    vocab = {piece: token for piece, token in model["vocab"].items() if token not in added}
    single = {} if any(byte_level) else _single_bytes(vocab, model)
    return Rules(
        merges=_merges(vocab, model, set(single), size),
        cuts=cuts,
        engine="tokenizers",
        spelled=None if any(byte_level) else _spelled(vocab, marked),
        single_bytes=frozenset(single),
        marked=marked,
        whole=frozenset(vocab.values() if model.get("ignore_merges") else ()),
        walls=_walls(state["added_tokens"], tokenizer, marked),
        added=_ordinary(state["added_tokens"]),
        composed=composed,
    )


def _check_model(model: Json) -> None:
    if model["type"] != "BPE":
        raise Undecidable(f"a {model['type']} tokenizer")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise Undecidable(f"BPE with {name} {model[name]!r}")


def _normaliser(state: Json) -> tuple[bool, bool]:
    """Whether text is composed (NFC), and whether a mark is written for each space."""
    composed = marked = False
    for step in flat(state["normalizer"], "normalizers"):
        kind = step["type"]
        if kind == "NFC":
            composed = True
        elif kind == "Replace" and step["pattern"] == {"String": " "}:
            if step["content"] != SPACE_MARK:
                raise Undecidable(f"a normaliser that writes {step['content']!r} for a space")
            marked = True
        elif kind != "Prepend" or step["prepend"] not in (SPACE_MARK, " "):
            raise Undecidable(f"the normaliser {kind}, which changes text")
    return composed, marked


def _cuts(step: Json) -> list[Cut]:
    kind = step["type"]
    if kind == "ByteLevel":
        return [Pattern(parse(_GPT2, "tokenizers"), False)] if step.get("use_regex", True) else []
    if kind == "Digits":
        individual = step["individual_digits"]
        return [edges_of(r"\p{N}", "Isolated" if individual else "Contiguous")]
    if kind == "Punctuation":
        return [edges_of(_PUNCTUATION, _behaviour(step))]
    if kind == "Metaspace" and step["replacement"] == SPACE_MARK:
        return [edges_of(SPACE_MARK, "MergedWithNext")] if step.get("split", True) else []
    if kind == "Split":
        return [_split(step)]
    raise Undecidable(f"the pre-tokenizer {kind}")


def _behaviour(step: Json) -> Behaviour:
    behaviour = step.get("behavior", "Isolated")
    if behaviour not in get_args(Behaviour):
        raise Undecidable(f"the pre-tokenizer {step['type']} with behavior {behaviour}")
    found: Behaviour = behaviour
    return found


def _split(step: Json) -> Cut:
    pattern = step["pattern"]
    source = pattern.get("Regex")
    if source is None:
        source = "".join(f"\\x{{{ord(letter):x}}}" for letter in pattern["String"])
    tree = parse(source, "tokenizers")
    if step["behavior"] == "Removed" and step["invert"]:  # what does not match is lost
        return Pattern(tree, True)
    behaviour = _behaviour(step)
    if isinstance(tree, Atom) and not step["invert"]:
        return edges_of(tree.source, behaviour)
    if behaviour != "Isolated":
        raise Undecidable(f"the pre-tokenizer Split with behavior {behaviour}")
    return Pattern(tree, False)


def _single_bytes(vocab: dict[str, int], model: Json) -> dict[int, int]:
    """Token -> byte of the pieces `<0xNN>`; all 256 must be there."""
    found = {}
    for piece, token in vocab.items():
        byte = spell_byte_piece(piece)
        if byte is not None:
            found[token] = byte[0]
    if not model.get("byte_fallback") or len(set(found.values())) < 256:
        raise Undecidable("BPE over characters without all bytes to fall back to")
    return found


def _spelled(vocab: dict[str, int], marked: bool) -> Members:
    members = np.zeros(CODE_POINTS, np.bool_)
    members[[ord(piece) for piece in vocab if len(piece) == 1]] = True
    if marked:  # a space in a text becomes the mark, and a mark in a text cannot be told from it
        members[[ord(" "), ord(SPACE_MARK)]] = True
    return members


def _merges(vocab: dict[str, int], model: Json, single: set[int], size: int) -> Merges:
    ranks: dict[int, int] = {}
    made: dict[int, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left in vocab and right in vocab and left + right in vocab:
            key = vocab[left] * size + vocab[right]
            ranks[key], made[key] = rank, vocab[left + right]
    base: dict[int, Sequence[int]] = {token: (token,) for token in single}
    for piece, token in vocab.items():
        if token not in base:
            try:
                base[token] = [vocab[letter] for letter in piece]
            except KeyError:  # of a letter that has no token nothing is merged
                continue
    return derive(size, ranks, made, base)


def _walls(added: Sequence[Json], tokenizer: Any, marked: bool) -> tuple[bytes, ...]:
    """The texts of the added tokens, as they stand in a text that is spelled by tokens."""
    walls = set()
    for entry in added:
        text = entry["content"]
        if entry["single_word"]:
            raise Undecidable(f"the added token {text!r} with single_word")
        if entry["normalized"] and tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        walls.add((text.replace(SPACE_MARK, " ") if marked else text).encode())
    return tuple(sorted(walls - {b""}))


def _ordinary(added: Sequence[Json]) -> frozenset[int]:
    """Added tokens that are text; one that takes the white space around it spells too little."""
    strips = ("special", "lstrip", "rstrip")
    return frozenset(entry["id"] for entry in added if not any(entry[name] for name in strips))
