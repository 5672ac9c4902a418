"""Vocabularies to compile for, and walks through what a matcher allows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from midstream.kernels.bitmask import mask_words, unpack_mask
from midstream.middleware.vocabulary import Vocabulary

GPT2 = Path(__file__).parents[4] / "shared" / "tokenizers" / "gpt2" / "vocab.json"

PIECES = (
    '{" "} ": ," }, ]} [{ [] {} ": " ", " "}] null true false true, "name "name": am me" "id '
    '":[" '
    'the and ing 10 12 99 -1 0. 00 1e e+ \\" \\n \\u00 ab abc abca xx yy (( )) +1 kind age é 中 éa'
)


def _byte_of_character() -> dict[str, int]:
    """GPT-2's way to write bytes as printable characters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    pairs = {chr(byte): byte for byte in plain}
    pairs.update({chr(256 + index): byte for index, byte in enumerate(rest)})
    return pairs


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> Vocabulary:
    """GPT-2's 50,257 tokens."""
    if not GPT2.exists():
        pytest.skip(f"the real tokenizer is not there: {GPT2}")
    byte_of = _byte_of_character()
    words = json.loads(GPT2.read_text(encoding="utf-8"))
    end = words.pop("<|endoftext|>")
    token_bytes = [b""] * (len(words) + 1)
    for word, token in words.items():
        token_bytes[token] = bytes(byte_of[character] for character in word)
    return Vocabulary(token_bytes, eos_ids=[end])


@pytest.fixture(scope="session")
def small_vocabulary() -> Vocabulary:
    """Every byte, pieces of JSON, some bytes twice, two ends of sequence, control, padding."""
    pieces = [piece.encode() for piece in PIECES.split(" ")] + [b" ", b"  ", b"\n", b'", "']
    twice = [b"a", b'"', b"}", b'",']
    words = [bytes([byte]) for byte in range(256)] + pieces + twice
    words = [*words[:100], b"<eos>", *words[100:], b"<eot>", b"<control>", b"", b""]
    size = len(words)
    return Vocabulary(words, eos_ids=[100, size - 4], special_ids=[size - 3])


@pytest.fixture(params=["small", "gpt2"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    """Each of the two in turn."""
    chosen: Vocabulary = request.getfixturevalue(f"{request.param}_vocabulary")
    return chosen


@pytest.fixture(scope="session")
def mask_of() -> Callable[..., npt.NDArray[np.bool_]]:
    """mask_of(matcher, state): its mask as bool [V], after a look at what lies beyond."""

    def read(matcher: Any, state: Any) -> npt.NDArray[np.bool_]:
        size = len(matcher.vocabulary)
        out = np.full(mask_words(size) + 2, 0xFFFFFFFF, np.uint32)
        matcher.mask(state, out)
        bits = unpack_mask(out, 32 * out.size)
        assert not bits[size:].any()
        return bits[:size]

    return read


@pytest.fixture(scope="session")
def walk(mask_of: Any) -> Callable[..., Iterator[tuple[int, ...]]]:
    """walk(matcher, seed, steps): random paths, each one token longer, until the text ends.

    Every third token or so is drawn among single bytes, so that paths do not end in one jump.
    """

    def go(matcher: Any, seed: int, steps: int) -> Iterator[tuple[int, ...]]:
        draw = random.Random(seed)
        state, path = matcher.start(), ()
        spellings = matcher.vocabulary.token_bytes
        for _ in range(steps):
            yield path
            allowed = np.flatnonzero(mask_of(matcher, state)).tolist()
            going_on = [token for token in allowed if token not in matcher.vocabulary.eos_ids]
            short = [token for token in going_on if len(spellings[token]) == 1]
            choices = short if short and draw.random() < 0.3 else going_on
            if not choices:
                return
            path = (*path, draw.choice(choices))
            state = matcher.advance(state, path[-1])

    return go


@pytest.fixture(scope="session")
def replay() -> Callable[..., Any]:
    """replay(matcher, path): the state at the end of a path, with nothing remembered on the way."""

    def go(matcher: Any, path: tuple[int, ...]) -> Any:
        state = matcher.start()
        for token in path:
            state = matcher.advance(state, token)
            assert state is not None
        return state

    return go


@pytest.fixture(scope="session")
def spell() -> Callable[..., list[int]]:
    """spell(vocabulary, text): some tokens that spell it, the longest first."""

    def go(vocabulary: Vocabulary, text: bytes) -> list[int]:
        known = {word: token for token, word in enumerate(vocabulary.token_bytes) if word}
        longest = min(16, max(map(len, known)))
        tokens, begin = [], 0
        while begin < len(text):
            end = min(len(text), begin + longest)
            while text[begin:end] not in known:
                end -= 1
            tokens.append(known[text[begin:end]])
            begin = end
        return tokens

    return go
