"""Where prompts are cut, and what may be streamed after them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from midstream.adapters.embedded import embedded_model_path
from midstream.middleware.bytes.tail import Overshoot, added_ids, cut_place, text_start
from midstream.middleware.errors import InputError
from midstream.middleware.vocabulary import Vocabulary

VOCABULARY = Vocabulary([b"a", b"b", b"ab", b"abb", b"bc", b"c", b"", b"<t>"], eos_ids=[6])


def test_a_cut_leaves_every_straddling_token_possible() -> None:
    """By listing: all tokens that begin at a byte of the kept end and reach beyond it."""
    spelt = VOCABULARY.token_bytes
    for ids in ([0, 1], [5, 0], [5, 5], [5, 0, 1], [2, 1], [5, 3], [0, 0, 0], [1, 4, 1]):
        place = cut_place(ids, VOCABULARY)
        text = VOCABULARY.decode(ids)
        starts = [
            start
            for start in range(len(text))
            if any(t.startswith(text[start:]) and len(t) > len(text) - start for t in spelt)
        ]
        kept = len(VOCABULARY.decode(ids[:place]))
        whole = len(VOCABULARY.decode(ids[: place + 1]))
        if not starts:
            assert place == len(ids)
        elif place > 1:
            assert kept <= starts[0] < whole
        else:
            assert starts[0] < whole  # but the first id stays in any case


def test_walls() -> None:
    assert cut_place([0, 6, 0], VOCABULARY) == 2
    assert cut_place([0, 6], VOCABULARY) == 2
    assert cut_place([5, 7, 0], VOCABULARY) == 2
    assert cut_place([5, 0], VOCABULARY) == 1
    assert cut_place([5, 0], VOCABULARY, walls={0}) == 2
    assert cut_place([5, 0, 1], VOCABULARY) == 1
    assert cut_place([5, 0, 1], VOCABULARY, walls={0}) == 2
    assert cut_place([0], VOCABULARY) == 1  # a model has no law without an id
    assert cut_place([6, 0], VOCABULARY) == 1
    assert text_start([0, 6, 0, 1], VOCABULARY) == 2
    assert text_start([0, 7, 1], VOCABULARY, walls={7}) == 2
    assert text_start([0, 1], VOCABULARY) == 0


def test_bad_prompts_are_named() -> None:
    with pytest.raises(InputError, match="empty prompt"):
        cut_place([], VOCABULARY)
    for ids in ([0, 99], [-1]):
        with pytest.raises(InputError, match="ids from 0 to 7"):
            cut_place(ids, VOCABULARY)


def test_added_tokens_of_a_tokenizer_are_walls() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["def f(x):\n    return x\n"] * 9,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"]),
    )
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tool = tokenizer.token_to_id("<tool>")
    assert tool in added_ids(tokenizer) and tokenizer.token_to_id("</s>") in added_ids(tokenizer)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.token_bytes[tool] == b"<tool>"
    ids = tokenizer.encode("def f<tool>").ids
    assert cut_place(ids, vocabulary, added_ids(tokenizer)) == len(ids)
    assert added_ids(vocabulary) == frozenset()


@pytest.fixture(scope="module")
def embedded() -> Tokenizer:
    return Tokenizer.from_file(str(Path(embedded_model_path()) / "tokenizer.json"))


TEXT = (
    "def größe(x):\n\tif x >= 1234567:\n\n    return x's  \u4f60\u597d\U0001f600 end\n\n\nclass A"
)


def test_prompt_and_stream_are_the_text_at_every_cut(embedded: Tokenizer) -> None:
    """However the continuation is tokenized, with the tail or by the bytes of the text alone."""
    vocabulary = Vocabulary.from_tokenizer(str(embedded_model_path()))
    whole = embedded.encode(TEXT, add_special_tokens=False).ids
    singles = {spelt: t for t, spelt in enumerate(vocabulary.token_bytes) if len(spelt) == 1}
    text = TEXT.encode()
    for cut in range(1, len(text)):
        prompt = [singles[bytes([byte])] for byte in text[:cut]]
        try:
            prompt = embedded.encode(text[:cut].decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:
            pass  # a prompt that ends inside a character, in single bytes
        place = cut_place(prompt, vocabulary)
        tail = vocabulary.decode(prompt[place:])
        kept = vocabulary.decode(prompt[:place])
        assert kept + tail == text[:cut]
        rest = [singles[bytes([byte])] for byte in text[len(kept) :]]
        redrawn = _from_boundary(vocabulary, whole, text, len(kept)) or rest
        for tokens in (rest, redrawn):
            stream = Overshoot(vocabulary, tail)
            assert text[:cut] + b"".join(map(stream.push, tokens)) == text
            assert stream.spelled


def _from_boundary(vocabulary: Vocabulary, ids: list[int], text: bytes, at: int) -> list[int]:
    """The ids of the text from a place on, if one of them begins there."""
    length = 0
    for i, token in enumerate(ids):
        if length == at:
            return ids[i:]
        length += len(vocabulary.token_bytes[token])
    return []


def test_an_overshoot_refuses_what_is_not_the_tail() -> None:
    stream = Overshoot(VOCABULARY, b"ab")
    assert stream.push(0) == b"" and not stream.spelled
    with pytest.raises(InputError, match="one that spells b'b'"):
        stream.push(5)
    assert stream.push(6) == b""  # an end spells nothing
    assert stream.push(4) == b"c" and stream.spelled
    assert stream.push(3) == b"abb"
