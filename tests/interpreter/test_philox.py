"""Random words and uniforms in the interpreter: bit for bit those of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import masked_sample
from midstream.kernels.philox import half_open_uniforms, philox_block
from midstream.kernels.triton.philox import draw_uniforms, half_open, philox_words
from midstream.middleware.random import PURPOSES, Stream

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


@triton.jit
def _words(state_ptr: tl.tensor, out_ptr: tl.tensor) -> None:
    low, high, c0, c1, c2, c3 = (
        tl.load(state_ptr).to(tl.uint32),
        tl.load(state_ptr + 1).to(tl.uint32),
        tl.load(state_ptr + 2).to(tl.uint32),
        tl.load(state_ptr + 3).to(tl.uint32),
        tl.load(state_ptr + 4).to(tl.uint32),
        tl.load(state_ptr + 5).to(tl.uint32),
    )
    w0, w1, w2, w3 = philox_words(low, high, c0, c1, c2, c3)
    tl.store(out_ptr, w0.to(tl.int64))
    tl.store(out_ptr + 1, w1.to(tl.int64))
    tl.store(out_ptr + 2, w2.to(tl.int64))
    tl.store(out_ptr + 3, w3.to(tl.int64))


@triton.jit
def _half_open(words_ptr: tl.tensor, out_ptr: tl.tensor) -> None:
    index = tl.arange(0, 8)
    tl.store(out_ptr + index, half_open(tl.load(words_ptr + index).to(tl.uint32)))


@triton.jit
def _draws(
    seed_ptr: tl.tensor,
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    out_ptr: tl.tensor,
    count: tl.constexpr,
) -> None:
    p = tl.program_id(0)
    for j in range(count):
        u0, u1 = draw_uniforms(seed_ptr, sequence_ptr, position_ptr, purpose, first + j, p)
        tl.store(out_ptr + 2 * (p * count + j), u0)
        tl.store(out_ptr + 2 * (p * count + j) + 1, u1)


@pytest.mark.parametrize(("key", "counter", "words"), VECTORS)
def test_known_answers(key: int, counter: tuple[int, ...], words: tuple[int, ...]) -> None:
    state = torch.tensor([key & ONES, key >> 32, *counter])
    out = torch.empty(4, dtype=torch.int64)
    _words[(1,)](state, out)
    assert tuple(out.tolist()) == words


def test_words_of_many_states() -> None:
    rng = np.random.default_rng(0)
    for key in (1234, 2**40 + 17, 2**62 + 5, 2**64 - 3):
        counter = tuple(rng.integers(0, 2**32, 4).tolist())
        out = torch.empty(4, dtype=torch.int64)
        _words[(1,)](torch.tensor([key & ONES, key >> 32, *counter]), out)
        assert tuple(out.tolist()) == philox_block(key, counter)


def test_uniforms_of_words() -> None:
    words = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 0x6627E8D5, 77, 2**24 + 1], np.uint32)
    out = torch.empty(8)
    _half_open[(1,)](torch.tensor(words.astype(np.int64)), out)
    assert (out.double().numpy() == half_open_uniforms(words)).all()


@pytest.mark.parametrize("first", [0, 3])
def test_draws_of_keys_are_those_of_a_stream(first: int) -> None:
    rng = np.random.default_rng(1)
    seed = rng.integers(-(2**63), 2**63 - 1, 5)
    sequence, position = rng.integers(0, 2**32, (2, 5))
    out = torch.empty(5, 4, 2)
    purpose = PURPOSES["proposal"]
    tensors = [torch.tensor(each) for each in (seed, sequence, position)]
    _draws[(5,)](*tensors, purpose, first, out, 4)
    expected = Keys(seed, sequence, position, purpose, first).uniforms(4)
    assert (out.double().numpy() == expected).all()
    for p in range(5):
        stream = Stream(int(seed[p]) % 2**64, int(sequence[p]), int(position[p]))
        assert (stream.uniforms("proposal", 8, 2 * first) == expected[p].reshape(-1)).all()


def test_pick_reads_its_own_counters() -> None:
    """Keys, and the uniforms that they stand for, give the same result bit for bit."""
    rng = np.random.default_rng(2)
    logits = torch.tensor(rng.normal(size=(9, 70)).astype(np.float32))
    keys = Keys(np.arange(9) << 40, np.arange(9) + 2**31, np.full(9, 2**32 - 1), 3, first=5)
    drawn = masked_sample(logits, None, keys, backend="triton")
    given = masked_sample(logits, None, keys.uniforms(1)[:, 0], backend="triton")
    assert (drawn.token == given.token).all()
    assert (drawn.log_p == given.log_p).all()
    assert len(set(drawn.token.tolist())) > 3
