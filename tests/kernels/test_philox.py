"""Philox4x32-10 against the published vectors, and the uniforms made of its words."""

from __future__ import annotations

import numpy as np
import pytest

from midstream.kernels.philox import (
    half_open_uniforms,
    open_uniforms,
    philox_block,
    philox_words,
)

ONES = 0xFFFFFFFF
VECTORS = [  # key, counter, words: the known-answer tests of Random123
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, (ONES, ONES, ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        0x299F31D0_A4093822,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("key", "counter", "words"), VECTORS)
def test_known_answers(key: int, counter: tuple[int, int, int, int], words: object) -> None:
    assert philox_block(key, counter) == words


def test_a_counter_is_position_sequence_index_purpose() -> None:
    words = philox_words(2**40 + 17, position=7, sequence=9, purpose=3, count=12)
    expected = [w for i in range(3) for w in philox_block(2**40 + 17, (7, 9, i, 3))]
    assert words.tolist() == expected


@pytest.mark.parametrize("start", [0, 1, 5, 31, 32])
def test_more_words_never_change_the_first(start: int) -> None:
    """Across the change from Python's integers to numpy too."""
    whole = philox_words(11, 2, 3, 1, 400)
    for count in (1, 3, 4, 30, 33, 200):
        assert (philox_words(11, 2, 3, 1, count, start) == whole[start : start + count]).all()


def test_uniforms_are_tritons() -> None:
    """An int32, folded to 31 bits, times the float32 constant: 0 is possible, 1 is not."""
    words = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 0x6627E8D5], np.uint32)
    expected = np.array([0, 1, 2**31 - 1, 2**31 - 1, 0, 0x6627E8D5], np.float32)
    uniforms = half_open_uniforms(words)
    assert (uniforms == (expected * np.float32(4.6566127342e-10)).astype(np.float64)).all()
    assert uniforms.max() == np.float32(0.99999994)


def test_open_uniforms_never_reach_their_ends() -> None:
    ends = open_uniforms(np.array([0, 2**32 - 1], np.uint32))
    assert 0 < ends[0] < ends[1] < 1
