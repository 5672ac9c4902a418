"""The Vocabulary class: what it holds, what it refuses, its fingerprint, its weight."""

from __future__ import annotations

import subprocess
import sys
import weakref

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from midstream.middleware.errors import VocabularyError
from midstream.middleware.vocabulary import Vocabulary

LETTERS = [b"a", b"b", b"ab", b"<s>", b"</s>", b"<pad>"]


def letters() -> Vocabulary:
    return Vocabulary(LETTERS, eos_ids=[4], special_ids=[3, 5])


def tokenizer_of(names: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({name: token for token, name in enumerate(names)}))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([name for name in names if name.startswith("<")])
    return tokenizer


def test_special_and_end_of_sequence_ids_have_no_bytes() -> None:
    vocabulary = letters()
    assert vocabulary.token_bytes == (b"a", b"b", b"ab", b"", b"", b"")
    assert vocabulary.special_ids == (3, 4, 5)
    assert vocabulary.eos_ids == (4,)
    assert len(vocabulary) == 6
    assert vocabulary.decode([2, 0, 4]) == b"aba"


def test_order_of_end_of_sequence_ids_is_kept_and_repeats_dropped() -> None:
    vocabulary = Vocabulary(LETTERS, eos_ids=np.array([5, 3, 5]))
    assert vocabulary.eos_ids == (5, 3)
    assert vocabulary.special_ids == (3, 5)


def test_an_id_without_bytes_is_special_whoever_gives_it() -> None:
    assert Vocabulary([b"a", b""], eos_ids=[]).special_ids == (1,)


@pytest.mark.parametrize(("size", "words"), [(1, 1), (32, 1), (33, 2), (128_256, 4_008)])
def test_mask_words(size: int, words: int) -> None:
    assert Vocabulary([b"x"] * size, eos_ids=[0]).mask_words == words


def test_the_vocabulary_is_a_value() -> None:
    vocabulary, other = letters(), Vocabulary(LETTERS, eos_ids=[4], special_ids=[5, 3])
    assert vocabulary == other
    assert hash(vocabulary) == hash(other)
    assert vocabulary != "letters"
    assert weakref.ref(vocabulary)() is vocabulary
    with pytest.raises(AttributeError):
        vocabulary.eos_ids = (1,)  # type: ignore[misc]


def test_fingerprint_is_the_same_in_every_process() -> None:
    # A change here makes every cache and every stored result of an earlier version stale.
    golden = "bb7bc3d932f0749c536b5c11ead1fbbe4497f0fa94632a08377a1092c48eb62e"
    assert letters().fingerprint == golden
    code = (
        "from midstream.middleware.vocabulary import Vocabulary as V;"
        f"print(V({LETTERS!r}, eos_ids=[4], special_ids=[3, 5]).fingerprint)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == golden


def test_fingerprint_tells_vocabularies_apart() -> None:
    variants = [
        letters(),
        Vocabulary(LETTERS, eos_ids=[4]),
        Vocabulary(LETTERS, eos_ids=[3], special_ids=[4, 5]),
        Vocabulary(LETTERS, eos_ids=[4, 3], special_ids=[5]),
        Vocabulary(LETTERS, eos_ids=[3, 4], special_ids=[5]),
        Vocabulary([*LETTERS, b""], eos_ids=[4], special_ids=[3, 5]),
        Vocabulary([b"a", b"ba", b"b", *LETTERS[3:]], eos_ids=[4], special_ids=[3, 5]),
        Vocabulary([b"b", b"a", b"ab", *LETTERS[3:]], eos_ids=[4], special_ids=[3, 5]),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("token_bytes", "options", "argument", "shown"),
    [
        ([], {"eos_ids": []}, "token_bytes", "at least one"),
        (b"abc", {"eos_ids": []}, "token_bytes", "sequence of at least one bytes"),
        ([b"a", "b"], {"eos_ids": [0]}, "token_bytes[1]", "accepted: bytes"),
        ([b"a"], {"eos_ids": [1]}, "eos_ids", "0 to 0"),
        ([b"a"], {"eos_ids": [-1]}, "eos_ids", "-1"),
        ([b"a"], {"eos_ids": 0}, "eos_ids", "a sequence of ids"),
        ([b"a"], {"eos_ids": [0.5]}, "eos_ids", "0.5"),
        ([b"a"], {"eos_ids": [0], "special_ids": [3]}, "special_ids", "3"),
        ([b"a"], {"eos_ids": [0], "prefix_space": "yes"}, "prefix_space", "never"),
    ],
)
def test_bad_arguments(
    token_bytes: list[bytes], options: dict[str, object], argument: str, shown: str
) -> None:
    with pytest.raises(VocabularyError) as caught:
        Vocabulary(token_bytes, **options)  # type: ignore[arg-type]
    assert caught.value.argument == argument
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    ("prefix_space", "text", "spelled"),
    [
        ("never", b"a", b"a"),
        ("always", b"a", b" a"),
        ("always", b" a", b"  a"),
        ("unless_present", b"a", b" a"),
        ("unless_present", b" a", b" a"),
        ("always", b"", b""),
    ],
)
def test_spelled(prefix_space: str, text: bytes, spelled: bytes) -> None:
    vocabulary = Vocabulary(LETTERS, eos_ids=[4], prefix_space=prefix_space)  # type: ignore[arg-type]
    assert vocabulary.spelled(text) == spelled


def test_ids_beyond_the_tokenizer_are_special() -> None:
    tokenizer = tokenizer_of(["a", "b", "</s>"])
    plain = Vocabulary.from_tokenizer(tokenizer)
    padded = Vocabulary.from_tokenizer(tokenizer, size=8)
    assert len(plain) == 3
    assert len(padded) == 8
    assert padded.token_bytes == (b"a", b"b", *[b""] * 6)
    assert padded.special_ids == (2, 3, 4, 5, 6, 7)
    assert padded != plain
    assert Vocabulary.from_tokenizer(tokenizer, size=3) == plain


def test_ids_that_the_tokenizer_leaves_unused_are_special() -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 3, "</s>": 4}))
    tokenizer.decoder = decoders.Fuse()
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=[4])
    assert vocabulary.token_bytes == (b"a", b"", b"", b"b", b"")
    assert vocabulary.special_ids == (1, 2, 4)


def test_a_tokenizer_larger_than_the_model_is_refused_with_both_sizes() -> None:
    with pytest.raises(VocabularyError, match=r"size: got 2; accepted: .* at least 3"):
        Vocabulary.from_tokenizer(tokenizer_of(["a", "b", "</s>"]), size=2)


def test_an_end_of_sequence_id_beyond_the_model_is_refused() -> None:
    with pytest.raises(VocabularyError, match="eos_ids: got 9"):
        Vocabulary.from_tokenizer(tokenizer_of(["a", "b", "</s>"]), eos_ids=[9], size=8)


def test_importing_it_loads_no_tokenizer_library() -> None:
    code = (
        "import sys; import midstream.middleware.vocabulary;"
        "heavy = {'tokenizers', 'transformers', 'torch', 'sentencepiece', 'tiktoken',"
        " 'mistral_common', 'pydantic', 'llguidance', 'outlines', 'outlines_core'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
