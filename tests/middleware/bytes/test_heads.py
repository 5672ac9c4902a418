"""The heads of a text, structure alone, with a GPT-2-like tokenizer and with every token string."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from midstream.middleware.bytes.canonical import Canonical
from midstream.middleware.bytes.heads import AnyTokens, Heads
from midstream.middleware.bytes.tail import byte_sorted
from midstream.middleware.vocabulary import Vocabulary

TEXT = (
    "class Foo:\n\n    def bar(self, don't=1234):\n\n\n        return [x for x in 'naïve 北京🙂']\n"
    "\n\nclass Bar:\r\n\tpass  \n    ]\n\nimport os  # we'll see   \n"
)


@lru_cache
def tokenizer() -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    return made


@pytest.fixture(scope="module")
def canonical() -> Canonical:
    vocabulary = Vocabulary.from_tokenizer(tokenizer(), eos_ids=[0])
    return Canonical.from_tokenizer(tokenizer(), vocabulary)


def heads_of(places: Any, text: bytes) -> Heads:
    heads = Heads(places, byte_sorted(places.vocabulary))
    for byte in text:
        heads.push(byte)
    return heads


def test_no_cut_of_a_text_is_without_heads_and_one_path_is_the_encoding(
    canonical: Canonical,
) -> None:
    text = TEXT.encode()
    heads = heads_of(canonical, b"")
    births = 0
    for length, byte in enumerate(text, start=1):
        before = len(heads)
        heads.push(byte)
        births += len(heads) - before
        assert 1 <= len(heads.live) <= 8
        trunk = heads.trunk
        spelled = canonical.vocabulary.decode(trunk)
        assert text[:length].startswith(spelled)
        for head in heads.live:
            path = heads.path(head.node)
            assert path[: len(trunk)] == trunk
            assert canonical.vocabulary.decode(path) == text[: heads.offset[head.node]]
        try:
            own = tokenizer().encode(text[:length].decode()).ids
        except UnicodeDecodeError:
            continue
        ends = [h for h in heads.live if not h.trie and canonical.may_end(heads.place[h.node])]
        assert [heads.path(h.node) for h in ends] == [own]
    assert births <= 1.3 * len(text)


def test_what_is_taken_back_comes_again_the_same(canonical: Canonical) -> None:
    text = TEXT.encode()
    heads = heads_of(canonical, text[:60])
    rng = np.random.default_rng(0)
    for _ in range(30):
        length = int(rng.integers(0, len(heads.text) + 1))
        heads.rollback(length)
        end = min(length + int(rng.integers(0, 25)), len(text))
        for byte in text[length:end]:
            heads.push(byte)
        fresh = heads_of(canonical, text[:end])
        assert bytes(heads.text) == text[:end]
        assert (heads.live, heads.parent, heads.token) == (fresh.live, fresh.parent, fresh.token)


def test_encoding_again_loses_every_head_where_the_heads_do_not(canonical: Canonical) -> None:
    """Negative control: "prefix and token encode as they stand" is no rule for a look-ahead."""
    text = b"\n\nclass"
    encode, tokens = tokenizer().encode, canonical.vocabulary

    def as_they_stand(path: list[int]) -> bool:
        return all(
            encode(tokens.decode(path[:i]).decode()).ids == path[:i] for i in range(len(path) + 1)
        )

    everything = heads_of(AnyTokens(tokens), text)
    ends = [everything.path(h.node) for h in everything.live if not h.trie]
    assert ends and not any(as_they_stand(path) for path in ends)
    heads = heads_of(canonical, text)
    assert encode(text.decode()).ids in [heads.path(h.node) for h in heads.live]


def test_any_tokens_are_every_way_to_spell_a_text() -> None:
    vocabulary = Vocabulary([b"a", b"aa", b"aaa", b"aa", b"", b""], eos_ids=[4])
    heads = heads_of(AnyTokens(vocabulary), b"aaaa")
    ends = sorted(heads.path(h.node) for h in heads.live if not h.trie)
    # Compositions of 4 into 1, 2 (two ids) and 3.
    assert len(ends) == len({tuple(path) for path in ends}) == 13
    assert all(vocabulary.decode(path) == b"aaaa" for path in ends)
    assert AnyTokens(vocabulary).mask(0).tolist() == [0b011111]


def test_a_text_that_no_tokens_spell_has_no_heads() -> None:
    heads = heads_of(AnyTokens(Vocabulary([b"a", b"ab", b""], eos_ids=[2])), b"aba")
    assert heads.live and heads.trunk == [1]
    heads.push(ord("c"))
    assert heads.live == () and heads.trunk == [] and heads.root() == -1
    heads.push(ord("a"))
    assert heads.live == ()
    heads.rollback(3)
    assert heads.trunk == [1]
