"""Logits masked in place: every type, stride and length, and rows that are left alone."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.bitmask import apply_bitmask, mask_words, pack_mask, unpack_mask

TYPES = [np.float16, np.float32, np.float64]


def _expected(logits: np.ndarray, mask: np.ndarray, rows: list[int]) -> np.ndarray:
    """One token after another, by the bit of its word."""
    result = logits.copy()
    for b in rows:
        for t in range(logits.shape[1]):
            inside = t >> 5 < mask.shape[1]
            if not inside or not mask[b, t >> 5] >> np.uint32(t & 31) & np.uint32(1):
                result[b, t] = -np.inf
    return result


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}")


@given(
    st.integers(0, 5),
    st.integers(1, 130),
    st.integers(-3, 2),
    st.sampled_from(TYPES),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_what_is_not_allowed_is_refused(
    rows: int, size: int, extra: int, dtype: type, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, size)).astype(dtype)
    mask = rng.integers(0, 2**32, (rows, max(mask_words(size) + extra, 0)), np.uint32)
    expected = _expected(logits, mask, list(range(rows)))
    apply_bitmask(logits, mask)
    assert (_bits(logits) == _bits(expected)).all()


@given(st.lists(st.integers(0, 4), max_size=8), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_only_the_rows_asked_for(indices: list[int], seed: int) -> None:
    """A row that is named twice is masked once; the mask may have rows that no logits have."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(6, 70)).astype(np.float32)
    mask = rng.integers(0, 2**32, (5, 3), np.uint32)
    expected = _expected(logits, mask, indices)
    apply_bitmask(logits, mask, indices=np.array(indices, np.int64))
    assert (_bits(logits) == _bits(expected)).all()


def _strided(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits [3, 65] in a larger array, and that array."""
    whole = np.random.default_rng(1).normal(size=(6, 160)).astype(np.float32)
    views = {
        "rows apart": whole[::2, :65],
        "columns apart": whole[:3, 1:131:2],
        "backwards": whole[2::-1, 64::-1],
        "transposed": whole.reshape(160, 6)[:65, 3:].T,
    }
    return views[kind], whole


@pytest.mark.parametrize("kind", ["rows apart", "columns apart", "backwards", "transposed"])
def test_any_stride(kind: str) -> None:
    logits, whole = _strided(kind)
    before = whole.copy()
    mask = np.random.default_rng(2).integers(0, 2**32, (3, 4), np.uint32)[:, ::2]
    expected = _expected(logits, mask, [0, 1, 2])
    apply_bitmask(logits, mask)
    assert (logits == expected).all()
    assert np.isneginf(whole).sum() == np.isneginf(expected).sum()
    assert (whole == before).sum() == before.size - np.isneginf(expected).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_tensors_are_changed_where_they_lie(dtype: torch.dtype, transposed: bool) -> None:
    values = torch.from_numpy(np.random.default_rng(3).normal(size=(3, 77)))
    tensor = values.to(dtype)
    if transposed:
        tensor = tensor.T.contiguous().T
    before, place = tensor.clone(), tensor.data_ptr()
    mask = np.random.default_rng(4).integers(0, 2**32, (3, 2), np.uint32)
    allowed = torch.from_numpy(np.stack([unpack_mask(words, 77) for words in mask]))
    apply_bitmask(tensor, torch.from_numpy(mask.view(np.int32)), indices=torch.tensor([0, 2]))
    assert tensor.data_ptr() == place
    allowed[1] = True
    assert torch.equal(tensor, before.masked_fill(~allowed, -torch.inf))


def test_nan_goes_where_it_is_refused_and_stays_where_it_is_allowed() -> None:
    logits = np.array([[np.nan, np.nan, np.inf, -np.inf, 1.0]], np.float32)
    apply_bitmask(logits, pack_mask(np.array([True, False, False, True, True]))[None])
    assert np.isnan(logits[0, 0])
    assert logits[0, 1:].tolist() == [-np.inf, -np.inf, -np.inf, 1.0]


def _with_its_tail_open(logits: np.ndarray, mask: np.ndarray) -> None:
    """The rule of xgrammar 0.2: what lies beyond the mask stays as it is."""
    size = min(logits.shape[1], 32 * mask.shape[1])
    apply_bitmask(logits[:, :size], mask)


def test_control_a_tail_left_open_is_noticed() -> None:
    mask = np.full((1, 2), 0xFFFFFFFF, np.uint32)
    ours, open_tail = np.zeros((1, 70), np.float32), np.zeros((1, 70), np.float32)
    expected = _expected(ours, mask, [0])
    apply_bitmask(ours, mask)
    _with_its_tail_open(open_tail, mask)
    assert (ours == expected).all()
    assert not (open_tail == expected).all()


@pytest.mark.parametrize(
    ("logits", "mask", "indices", "message"),
    [
        (np.zeros(4), np.zeros((1, 1), np.uint32), None, r"logits: got float64 \[4\]"),
        (np.zeros((1, 4), int), np.zeros((1, 1), np.uint32), None, "logits: got int64"),
        (np.zeros((1, 4)), np.zeros((1, 1), np.int32), None, "mask: got int32"),
        (np.zeros((2, 4)), np.zeros((1, 1), np.uint32), None, r"accepted: uint32 \[2, W\]"),
        (np.zeros((2, 4)), torch.zeros(2, 1), None, "mask: got torch.float32"),
        (np.zeros((2, 4)), np.zeros((1, 1), np.uint32), np.array([1]), "indices: got 1"),
        (np.zeros((2, 4)), np.zeros((2, 1), np.uint32), np.array([-1]), "at least 0"),
        (np.zeros((2, 4)), np.zeros((2, 1), np.uint32), np.array([0.5]), "integers"),
    ],
)
def test_wrong_arguments_are_named(logits: Any, mask: Any, indices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_bitmask(logits, mask, indices=indices)


def test_triton_by_name_wants_a_device() -> None:
    with pytest.raises(ValueError, match="backend: got 'triton' for a ndarray"):
        apply_bitmask(np.zeros((1, 4)), np.zeros((1, 1), np.uint32), backend="triton")


def test_nothing_is_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_bitmask(np.zeros((1, 4), np.float16), np.zeros((1, 0), np.uint32))
