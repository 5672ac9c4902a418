"""What is told apart: walls, composed text, whole pieces, padding; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from midstream.kernels.bitmask import unpack_mask
from midstream.middleware.bytes.canonical import Canonical, Place, Undecidable
from midstream.middleware.errors import VocabularyError
from midstream.middleware.vocabulary import Vocabulary

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
END = "<|endoftext|>"
MERGES = [("a", "b"), ("ab", "c"), ("Ġ", "a"), ("Ċ", "Ċ"), ("Ã", "©"), ("1", "2"), ("Ì", "ģ")]


def byte_level(
    *added: str | AddedToken, normalizer: Any = None, whole: tuple[str, ...] = ()
) -> Tokenizer:
    """Bytes, a few merges, GPT-2's pattern; `whole`: tokens that nothing merges."""
    names = [*ALPHABET, *("".join(merge) for merge in MERGES), *whole]
    vocab = {name: token for token, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab, MERGES, ignore_merges=bool(whole)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([END])
    tokenizer.add_tokens(list(added))
    return tokenizer


def read(tokenizer: Tokenizer, size: int | None = None) -> Canonical:
    vocabulary = Vocabulary.from_tokenizer(tokenizer, size=size)
    return Canonical.from_tokenizer(tokenizer, vocabulary)


def walk(canonical: Canonical, *spellings: str | bytes) -> Place | None:
    """The place behind the tokens of these spellings, each the first of its bytes."""
    place = canonical.start()
    for spelling in spellings:
        text = spelling if isinstance(spelling, bytes) else spelling.encode()
        token = canonical.vocabulary.token_bytes.index(text)
        after = canonical.step(place, token)
        if after is None:
            return None
        place = after
    return place


def ends(canonical: Canonical, *spellings: str | bytes) -> bool:
    place = walk(canonical, *spellings)
    return place is not None and canonical.may_end(place)


def test_pairs_inside_a_piece_and_across_a_cut() -> None:
    canonical = read(byte_level())
    assert ends(canonical, "abc") and ends(canonical, "ab", " a")
    assert walk(canonical, "a", "b") is None
    assert walk(canonical, "\n", "\n") is not None and not ends(canonical, "\n", "\n")
    assert ends(canonical, "\n", "\n", "abc") and walk(canonical, "\n\n", "abc") is None
    assert canonical.may_end(canonical.start())


def test_the_text_of_a_special_token_is_a_wall() -> None:
    canonical = read(byte_level())
    letters = list(END)
    assert walk(canonical, *letters[:-1]) is not None and ends(canonical, *letters[:-1])
    assert walk(canonical, *letters) is None
    place = walk(canonical, *letters[:-1])
    assert place is not None
    closing = canonical.vocabulary.token_bytes.index(b">")
    assert not unpack_mask(canonical.mask(place), len(canonical.vocabulary))[closing]
    assert walk(canonical, *letters[:-1], "?") is not None


def test_an_added_token_stands_between_texts() -> None:
    tokenizer = byte_level("<x>", "<x>y", AddedToken("<pad>", lstrip=True))
    canonical = read(tokenizer)
    assert ends(canonical, "ab", "<x>", "ab") and ends(canonical, "<x>y")
    assert walk(canonical, "<x>", "y") is None and walk(canonical, "<", "x", ">") is None
    assert walk(canonical, "\n", "\n", "<x>") is None and ends(canonical, "\n\n", "<x>")
    assert walk(canonical, "<pad>") is None
    for text in ("ab<x>ab", "<x>y", "<x>z<x>"):
        ids = tokenizer.encode(text).ids
        spelled = [canonical.vocabulary.token_bytes[token] for token in ids]
        assert ends(canonical, *spelled), text


def test_text_that_would_be_composed_is_no_text() -> None:
    canonical = read(byte_level(normalizer=normalizers.NFC()))
    plain = read(byte_level())
    acute = "\u0301".encode()
    assert walk(plain, "e", acute) is not None and walk(canonical, "e", acute) is None
    assert ends(canonical, "é") and ends(canonical, "x", acute)
    angstrom = "\u212b".encode()
    single = [bytes([byte]) for byte in angstrom]
    assert walk(plain, *single) is not None and walk(canonical, *single) is None
    assert walk(canonical, *("\u0360".encode()[at : at + 1] for at in range(2))) is not None


def test_a_word_without_merges_is_only_a_whole_piece() -> None:
    canonical = read(byte_level(whole=("Ġabz", "xy")))
    assert ends(canonical, "xy") and ends(canonical, "abc", " abz", " a")
    assert walk(canonical, "xy", "c") is None and walk(canonical, "a", "xy") is None
    assert walk(canonical, "x", "y") is not None and not ends(canonical, "x", "y")
    assert ends(canonical, "x", "y", "c") and walk(canonical, "x", "y", " a") is None
    assert not ends(canonical, " ", "ab", "z") and ends(canonical, " ", "ab", "z", "z")


def test_characters_are_whole_or_begun() -> None:
    canonical = read(byte_level())
    begun = walk(canonical, b"\xe6", b"\x97")
    assert begun is not None and begun.begun == b"\xe6\x97" and not canonical.may_end(begun)
    assert ends(canonical, b"\xe6", b"\x97", b"\xa5")
    assert walk(canonical, b"\x97") is None and walk(canonical, b"\xe6", "a") is None
    assert walk(canonical, b"\xed", b"\xa0") is None and walk(canonical, b"\xff") is None
    assert walk(canonical, b"\xc3", b"\xa9") is None and ends(canonical, "é")


def test_padding_and_special_ids_are_never_allowed() -> None:
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size() + 40
    canonical = read(tokenizer, size)
    (eos,) = canonical.vocabulary.eos_ids
    start, inside = canonical.start(), walk(canonical, "\n", "\n")
    assert inside is not None
    at_start = unpack_mask(canonical.mask(start), size)
    assert at_start[eos] and not unpack_mask(canonical.mask(inside), size)[eos]
    others = [token for token in canonical.vocabulary.special_ids if token != eos]
    assert len(others) == 40 and not at_start[others].any()
    assert canonical.step(start, eos) is None
    assert canonical.step(start, -1) is None and canonical.step(start, size) is None


def test_one_canonical_for_one_tokenizer_and_one_mask_for_equal_places() -> None:
    canonical, again = read(byte_level()), read(byte_level())
    assert canonical is again and read(byte_level("<x>")) is not canonical
    one, other = walk(canonical, "ab", " a"), walk(canonical, "abc", " a")
    assert one == other and hash(one) == hash(other)
    assert one is not None and other is not None
    assert canonical.mask(one) is canonical.mask(other)
    assert canonical.mask(one).dtype == np.uint32 and not canonical.mask(one).flags.writeable


def test_a_tokenizer_of_transformers_is_read_through_its_backend() -> None:
    transformers = pytest.importorskip("transformers")
    backend = byte_level("<x>")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    vocabulary = Vocabulary.from_tokenizer(wrapped)
    canonical = Canonical.from_tokenizer(wrapped, vocabulary)
    assert ends(canonical, "ab", "<x>", "\n", "\n", "abc")
    assert canonical is Canonical.from_tokenizer(wrapped, Vocabulary.from_tokenizer(wrapped))


def test_threads_share_one_canonical() -> None:
    tokenizer = byte_level("<thread>")
    canonical = read(tokenizer)
    texts = [f"abc 12\n\n é{'ab' * n}<thread>\n x1{n}" for n in range(24)]

    def masks(text: str) -> list[bytes]:
        place, found = canonical.start(), []
        for token in tokenizer.encode(text).ids:
            found.append(canonical.mask(place).tobytes())
            after = canonical.step(place, token)
            assert after is not None
            place = after
        return found

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(masks, texts))
    assert together == [masks(text) for text in texts]


def altered(change: Callable[[dict[str, Any]], None]) -> Tokenizer:
    state = json.loads(byte_level().to_str())
    change(state)
    return Tokenizer.from_str(json.dumps(state))


def with_model(**entries: Any) -> Tokenizer:
    return altered(lambda state: state["model"].update(entries))


def with_steps(*steps: Any, normalizer: Any = None) -> Tokenizer:
    tokenizer = byte_level(normalizer=normalizer)
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    return tokenizer


REFUSED: dict[str, Callable[[], Tokenizer]] = {
    "dropout": lambda: with_model(dropout=0.1),
    "Lowercase": lambda: with_steps(normalizer=normalizers.Lowercase()),
    "NFKC": lambda: with_steps(normalizer=normalizers.NFKC()),
    "Strip": lambda: with_steps(normalizer=normalizers.Strip()),
    "WhitespaceSplit": lambda: with_steps(pre_tokenizers.WhitespaceSplit()),
    "UnicodeScripts": lambda: with_steps(pre_tokenizers.UnicodeScripts()),
    "Removed": lambda: with_steps(pre_tokenizers.Split(Regex("x"), "removed")),
    "unknown from": lambda: with_steps(pre_tokenizers.Split(Regex(r"(?<=a)b"), "isolated")),
    "behavior": lambda: with_steps(pre_tokenizers.Split(Regex("ab"), "contiguous")),
    "after ByteLevel": lambda: with_steps(pre_tokenizers.ByteLevel()),
    "single_word": lambda: byte_level(AddedToken("<x>", single_word=True)),
    "fall back": lambda: altered(lambda state: state.update(pre_tokenizer=None)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_decided_is_refused_with_the_reason(reason: str) -> None:
    with pytest.raises(Undecidable, match=reason) as refused:
        read(REFUSED[reason]())
    assert isinstance(refused.value, VocabularyError)
    assert refused.value.argument == "tokenizer"


def test_unigram_is_refused() -> None:
    pieces = [("<unk>", 0.0), ("\u2581", -1.0), ("a", -2.0), ("</s>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    with pytest.raises(Undecidable, match="Unigram"):
        Canonical.from_tokenizer(tokenizer, vocabulary)
    with pytest.raises(Undecidable, match="object of"):
        Canonical.from_tokenizer(object(), vocabulary)
