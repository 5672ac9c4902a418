"""Fill-in-the-middle prompts: what moves into the middle, and what comes back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from midstream.kernels.bitmask import mask_words, unpack_mask
from midstream.middleware.bytes.canonical import Canonical
from midstream.middleware.bytes.fim import EndsWith, Fim, Sentinels
from midstream.middleware.bytes.splits import Splitter
from midstream.middleware.errors import InputError
from midstream.middleware.vocabulary import Vocabulary

TEXT = "def area(width, height):\n    return width * height\n\n\nprint(area(3, 4))\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["</s>", "<pre>", "<suf>", "<mid>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=special)
    made.train_from_iterator([TEXT] * 20, trainer)
    return made


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer, eos_ids=[0])


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_the_parts_and_the_middle_are_the_text_at_every_hole(
    tokenizer: Tokenizer, vocabulary: Vocabulary, order: Any
) -> None:
    fim = Fim(tokenizer, vocabulary, Sentinels(1, 2, 3, order))
    rng = np.random.default_rng(0)
    for _ in range(150):
        begin, end = sorted(rng.integers(0, len(TEXT) + 1, 2).tolist())
        prefix, middle, suffix = TEXT[:begin], TEXT[begin:end], TEXT[end:]
        made = fim.prompt(prefix, suffix)
        ids = list(made.token_ids)
        places = [ids.index(mark) for mark in (1, 2, 3)]
        stops = sorted([*places, len(ids)])
        parts = {
            mark: vocabulary.decode(ids[at + 1 : stops[stops.index(at) + 1]])
            for mark, at in zip((1, 2, 3), places, strict=True)
        }
        assert parts[1] + made.tail == prefix.encode()
        assert made.head + parts[2] == suffix.encode()
        assert parts[3] == made.tail
        assert made.middle(middle.encode() + made.head) == middle.encode()
        assert (places[0] < places[1]) == (order == "psm")


def test_every_token_that_straddles_an_edge_stays_possible(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    """By listing: none that begins in the kept prefix, or ends in the kept suffix, crosses."""
    fim, spelt = Fim(tokenizer, vocabulary, Sentinels(1, 2, 3)), vocabulary.token_bytes
    for at in range(1, len(TEXT)):
        made = fim.prompt(TEXT[:at], TEXT[at:])
        before, after = TEXT[:at].encode(), TEXT[at:].encode()
        for size in range(len(made.tail) + 1, min(len(before), 12) + 1):
            end = before[-size:]
            assert not any(t.startswith(end) and len(t) > size for t in spelt)
        for size in range(len(made.head) + 1, min(len(after), 12) + 1):
            begin = after[:size]
            assert not any(t.endswith(begin) and len(t) > size for t in spelt)


def test_healing_finds_the_tail_and_nothing_before_the_sentinel(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    made = Fim(tokenizer, vocabulary, Sentinels(1, 2, 3)).prompt(TEXT[:30], TEXT[34:])
    canonical = Canonical.from_tokenizer(tokenizer, vocabulary)
    split = Splitter(tokenizer, vocabulary, canonical=canonical).split(made.token_ids)
    assert split.text == made.tail != b"" and split.fixed[-1] == 3
    off = Fim(tokenizer, vocabulary, Sentinels(1, 2, 3)).prompt(TEXT[:30], TEXT[34:], heal=False)
    assert off.tail == off.head == b"" and off.token_ids[-1] == 3
    assert off.middle(b"any") == b"any"


def test_a_text_ends_with_the_head_alone(vocabulary: Vocabulary) -> None:
    matcher = EndsWith(b"th * ").compile(vocabulary)
    token = {spelt: t for t, spelt in enumerate(vocabulary.token_bytes) if spelt}
    state = matcher.start()
    bits = np.empty(mask_words(len(vocabulary)) + 1, np.uint32)
    for byte in b"width * th * ":
        matcher.mask(state, bits)
        allowed = unpack_mask(bits, len(vocabulary))
        assert np.array_equal(allowed, matcher.allows(state, range(len(vocabulary))))
        assert allowed[0] == matcher.accepts(state)
        state = matcher.advance(state, token[bytes([byte])])
    assert matcher.accepts(state) and not allowed[0] and not allowed[1:4].any()
    ended = matcher.advance(state, 0)
    matcher.mask(ended, bits)
    assert not bits.any() and not matcher.accepts(ended)
    assert matcher.advance(ended, token[b"a"]) is None


def test_bad_sentinels(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="suffix: got 70"):
        Fim(tokenizer, vocabulary, Sentinels(1, 70, 3))
    with pytest.raises(InputError, match='"psm" or "spm"'):
        Sentinels(1, 2, 3, "msp")  # type: ignore[arg-type]
