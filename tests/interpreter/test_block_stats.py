"""Block statistics in the interpreter against float64, and a shared maximum that fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.triton.block_stats import block_stats, load_allowed, load_logits
from midstream.kernels.triton.launch import as_noise, as_temperature
from midstream.kernels.triton.pick import pick

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _sums(rows: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of float64 [R, V]: maxima, sums and entropy numerators of the blocks, each [R, NB]."""
    blocks = -(-rows.shape[1] // BLOCK)
    x = np.full((len(rows), blocks * BLOCK), -np.inf)
    x[:, : rows.shape[1]] = rows
    x = x.reshape(len(rows), blocks, BLOCK)
    m = np.maximum(x.max(axis=2), NO_MASS)
    d = np.maximum((x - m[..., None]) / (temperature * np.log(2)), -1e6)
    return m, np.exp2(d).sum(axis=2), (np.exp2(d) * d).sum(axis=2)


def _exact(logits: np.ndarray, allowed: np.ndarray, temperature: float) -> np.ndarray:
    x = logits.astype(np.float64)
    m, s, t = _sums(x, temperature)
    mo, so, _ = _sums(np.where(allowed, x, -np.inf), temperature)
    return np.stack([m, s, mo, so, t], axis=1)


def _check(partials: np.ndarray, exact: np.ndarray) -> None:
    np.testing.assert_allclose(partials[:, [0, 2]], exact[:, [0, 2]], rtol=1e-7)
    np.testing.assert_allclose(partials[:, [1, 3]], exact[:, [1, 3]], rtol=1e-6)
    np.testing.assert_allclose(partials[:, 4], exact[:, 4], rtol=1e-5, atol=1e-5)


def _rows(dtype: torch.dtype, size: int = 5003) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.uniform(-30, 30, (2, size)), dtype=dtype)
    # What is allowed lies below the top of its block by as much as fp32 does not hold at T = 0.05.
    allowed = (logits.float().numpy() < 20) & (rng.random((2, size)) < 0.4)
    allowed[0, BLOCK : 2 * BLOCK] = False
    return logits, allowed, np.stack([pack_mask(each) for each in allowed])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 2.0])
def test_within_1e_6_of_float64(dtype: torch.dtype, temperature: float) -> None:
    logits, allowed, mask = _rows(dtype)
    words = torch.tensor(mask.view(np.int32))
    exact = _exact(logits.float().numpy(), allowed, temperature)
    number = as_temperature(temperature, logits)
    _check(block_stats(logits, words, number).numpy(), exact)
    for precision in (torch.float32, torch.float64):
        of_rows = as_temperature(torch.full((2,), temperature, dtype=precision), logits)
        _check(block_stats(logits, words, of_rows).numpy(), exact)


def test_without_a_mask_everything_is_allowed() -> None:
    logits, allowed, _ = _rows(torch.float32)
    partials = block_stats(logits, None, as_temperature(0.5, logits)).numpy()
    _check(partials, _exact(logits.numpy(), np.ones_like(allowed), 0.5))
    assert (partials[:, :2] == partials[:, 2:4]).all()


def test_many_equal_tokens_far_below_one() -> None:
    """Half of the mass in tokens that the rounding of the scale moves all the same way."""
    logits = torch.full((1, BLOCK), -11 * np.log(2) * 0.3)
    logits[0, 7] = 0.0
    partials = block_stats(logits, None, as_temperature(0.3, logits)).numpy()
    _check(partials, _exact(logits.numpy(), np.ones((1, BLOCK), np.bool_), 0.3))


def test_what_is_broken_shows_in_the_sums() -> None:
    logits = torch.zeros(4, BLOCK + 5)
    logits[0, 3] = np.nan
    logits[1, BLOCK + 1] = np.inf
    logits[2] = -np.inf
    logits[3] = torch.finfo(torch.float32).min
    nothing = torch.zeros(4, 1, dtype=torch.int32)
    partials = block_stats(logits, nothing, as_temperature(1.0, logits)).numpy()
    assert np.isnan(partials[0, 1, 0]) and np.isnan(partials[1, 1, 1])
    assert (partials[2:, 0] == np.float32(NO_MASS)).all()
    assert not partials[2:, 1].any() and not partials[:, 3].any() and not partials[2:, 4].any()


@triton.jit
def _shared_maximum(
    logits_ptr: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,
    words: tl.tensor,
    scale: tl.tensor,
    partials_ptr: tl.tensor,  # [5, NB] of one row, mo and so are written
    block_size: tl.constexpr,
) -> None:
    """The field's known bug: the allowed set measured against the maximum of all."""
    begin = tl.program_id(0) * block_size
    x = load_logits(logits_ptr, begin, size, block_size)
    m = tl.max(x, 0)
    y = tl.where(load_allowed(mask_ptr, begin, words, block_size), x, float("-inf"))
    out = partials_ptr + tl.program_id(0)
    tl.store(out + 2 * tl.num_programs(0), m)
    tl.store(out + 3 * tl.num_programs(0), tl.sum(tl.exp2((y - m) * scale), 0))


def test_one_shared_maximum_fails_the_same_check() -> None:
    """At T = 0.05 what is allowed is lost, though its weight is far from 0 beside the rest."""
    logits = torch.zeros(1, 3000)
    logits[0, [5, 2500]] = torch.tensor([10.0, 10.0])
    logits[0, [9, 2600]] = torch.tensor([-4.0, 2.0])
    allowed = np.zeros((1, 3000), np.bool_)
    allowed[0, [9, 2600]] = True
    words = torch.tensor(pack_mask(allowed[0]).view(np.int32))[None]
    temperature = as_temperature(0.05, logits)
    exact = _exact(logits.numpy(), allowed, 0.05)
    partials = block_stats(logits, words, temperature)
    _check(partials.numpy(), exact)

    def log_weight() -> float:
        noise = as_noise(np.zeros((1, 2)), logits, 1, 1)
        return float(pick(logits, words, partials, temperature, noise).values[1, 0])

    expected = -160 - np.log(2)
    assert log_weight() == pytest.approx(expected, abs=2e-6)
    scale = float(np.log2(np.e) / 0.05)
    _shared_maximum[(2,)](logits, 3000, words, words.shape[1], scale, partials, BLOCK)
    with pytest.raises(AssertionError):
        _check(partials.numpy(), exact)
    assert log_weight() == -np.inf
