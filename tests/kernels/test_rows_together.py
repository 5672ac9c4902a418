"""Rows that are read together are, bit for bit, the rows that are read one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.bitmask import mask_words, pack_mask
from midstream.kernels.blocks import LONG
from midstream.kernels.row import BLOCK, Row, Rows, read_rows

SIZES = [1, 5, 64, 1000, BLOCK, BLOCK + 1, 2 * BLOCK, LONG, LONG + 1, 2 * LONG]


def _same(one: Row, other: Row) -> None:
    assert one.finite == other.finite
    if not one.finite:
        return
    assert one.log_z_all == other.log_z_all
    assert one.log_z_allowed == other.log_z_allowed
    assert one.log_live() == other.log_live()
    assert (one.law() == other.law()).all()


@given(
    st.sampled_from(SIZES),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 10.0, 60.0]),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([0.5, 1.0, 20.0]),
)
@settings(max_examples=60, deadline=None)
def test_together_is_one_by_one(
    size: int, rows: int, seed: int, scale: float, dtype: type, inverse_temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    rows = min(rows, 100_000 // size + 1)
    logits = (rng.normal(size=(rows, size)) * scale).astype(dtype)
    logits[rng.random((rows, size)) < rng.choice([0.0, 0.3])] = -np.inf
    if seed % 5 == 0:
        logits[rng.integers(rows), rng.integers(size)] = rng.choice([np.nan, np.inf])
    shares = rng.choice([0.0, 0.01, 0.5, 1.0], size=(rows, 1))
    masks = np.stack([pack_mask(each) for each in rng.random((rows, size)) < shares])
    uniforms = rng.random((20, 2))
    together = [row for rows in read_rows(logits, masks, inverse_temperature) for row in rows]
    for i, other in enumerate(together):
        one = Row(logits[i], masks[i], inverse_temperature)
        _same(one, other)
        if not one.finite or one.log_live() == -np.inf:
            continue
        drawn = one.take(uniforms)
        assert (drawn == other.take(uniforms)).all()
        for row in (one, other):
            row.remove(list(dict.fromkeys(drawn[:9].tolist())))
        _same(one, other)


@pytest.mark.parametrize("size", [1000, LONG + 1])
def test_a_removal_leaves_the_other_rows(size: int) -> None:
    logits = np.zeros((3, size), np.float32)
    first, second, third = Rows(logits, np.full((3, mask_words(size)), 0xFFFFFFFF, np.uint32))
    before = second.law()
    first.remove([1, 2, 3])
    third.remove([0])
    assert (second.law() == before).all()
    assert first.law()[1] == 0.0


@pytest.mark.parametrize("size", [BLOCK, LONG + BLOCK])
def test_a_mask_that_allows_everything(size: int) -> None:
    logits = np.random.default_rng(0).normal(size=size).astype(np.float32)
    masked = Row(logits, np.full(mask_words(size), 0xFFFFFFFF, np.uint32))
    assert masked.log_z_allowed == Row(logits).log_z_all


@pytest.mark.parametrize("size", [1, 100, 5000, 20_000])
def test_a_mask_of_no_words_allows_nothing(size: int) -> None:
    np.full(size, 255, np.uint8).tolist()  # memory that is not zero, to be reused
    row = Row(np.zeros(size, np.float32), np.empty(0, np.uint32))
    assert row.log_z_allowed == -np.inf
    assert np.isfinite(row.log_z_all)


@given(st.sampled_from(SIZES), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 10.0, 60.0]))
@settings(max_examples=40, deadline=None)
def test_one_draw_of_each_row_is_that_of_the_row(size: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(5, size)) * scale).astype(np.float32)
    masks = np.stack(
        [pack_mask(each) for each in rng.random((5, size)) < [[0.0], [0.01], [0.5], [0.9], [1.0]]]
    )
    uniforms = rng.random((5, 2))
    rows = Rows(logits, masks)
    drawn = rows.take(uniforms)
    for row, token, uniform in zip(rows, drawn.tolist(), uniforms, strict=True):
        if row.log_live() > -np.inf:
            assert token == row.take(uniform[None])[0]
            assert row.law()[token] > 0.0


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, 4096, LONG])
def test_a_draw_is_where_the_sum_of_all_tokens_reaches_it(size: int) -> None:
    """By chunks as token by token: the inverse of the plain cumulative sum in float64."""
    rng = np.random.default_rng(size)
    logits = (rng.normal(size=size) * 4).astype(np.float32)
    row, uniforms = Row(logits), rng.random((20_000, 2))
    law = row.law()
    ends = np.append(0.0, law.cumsum())
    bounds = ends[:: min(size, BLOCK)] if size > BLOCK else ends[[0, -1]]
    blocks = bounds[1:].searchsorted(uniforms[:, 0] * bounds[-1], side="right")
    points = bounds[blocks] + uniforms[:, 1] * (bounds[blocks + 1] - bounds[blocks])
    near = np.abs(points[:, None] - ends[ends.searchsorted(points)][:, None]).min(axis=1) < 1e-6
    same = ends[1:].searchsorted(points, side="right") == row.take(uniforms)
    assert (same | near).all()
    assert same.mean() > 0.99
