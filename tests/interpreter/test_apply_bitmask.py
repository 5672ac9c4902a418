"""`apply_bitmask` in the interpreter against numpy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.bitmask import apply_bitmask, mask_words
from midstream.kernels.blocks import BLOCK

TYPES = [torch.bfloat16, torch.float16, torch.float32]


def _words(rng: np.random.Generator, rows: int, words: int) -> np.ndarray:
    return rng.integers(0, 2**32, (rows, words), np.uint32)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.itemsize == 2 else torch.int32)


def _both(logits: torch.Tensor, mask: np.ndarray, indices: torch.Tensor | None = None) -> None:
    """The numpy result and ours are equal; what is changed in `logits` is ours."""
    expected = logits.clone()
    apply_bitmask(expected, mask, indices=indices, backend="numpy")
    words = torch.from_numpy(mask.view(np.int32))
    apply_bitmask(logits, words, indices=indices, backend="triton")
    assert torch.equal(_bits(logits), _bits(expected))


@given(
    st.integers(0, 3),
    st.one_of(st.integers(1, 70), st.integers(BLOCK - 2, BLOCK + 70)),
    st.integers(-2, 2),
    st.sampled_from(TYPES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_as_in_numpy(rows: int, size: int, extra: int, dtype: torch.dtype, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(rows, size))).to(dtype)
    if rows:
        logits[0, rng.integers(size)] = torch.nan
    _both(logits, _words(rng, rows, max(mask_words(size) + extra, 0)))


@pytest.mark.parametrize("dtype", TYPES)
def test_some_rows_and_any_stride(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(1)
    whole = torch.from_numpy(rng.normal(size=(6, 300))).to(dtype)
    before = whole.clone()
    logits = whole[1:, 3:260:2]  # neither rows nor tokens lie side by side
    _both(logits, _words(rng, 4, 4), torch.tensor([3, 0, 3]))
    untouched = torch.ones_like(whole, dtype=torch.bool)
    untouched[[1, 4], 3:260:2] = False
    assert torch.equal(whole[untouched], before[untouched])
    turned = torch.from_numpy(rng.normal(size=(70, 2))).to(dtype).T
    _both(turned, _words(rng, 2, 3))


def test_a_mask_from_the_host_and_no_row() -> None:
    logits = torch.zeros(1, 70)
    apply_bitmask(logits, np.full((1, 2), 0xFFFFFFFF, np.uint32), backend="triton")
    assert logits.isneginf().nonzero()[:, 1].tolist() == list(range(64, 70))
    apply_bitmask(logits, np.zeros((1, 3), np.uint32), indices=np.zeros(0, int), backend="triton")
    assert logits.isneginf().sum() == 6


def test_what_the_kernel_does_not_take_is_named() -> None:
    mask = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"logits: got torch\.float64"):
        apply_bitmask(torch.zeros(1, 4, dtype=torch.float64), mask, backend="triton")
