"""Draws without replacement in the interpreter: against numpy, and what a subtraction does."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.blocks import BLOCK
from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import Draws, draw_without_replacement

TOLERANCE = 2e-6


def _words(mask: np.ndarray) -> torch.Tensor:
    return torch.tensor(mask.view(np.int32))


def _agree(ours: Draws, oracle: Draws) -> None:
    """Of fixed seeds, none of whose uniforms lies near a boundary: tokens are equal."""
    assert ours.token.tolist() == oracle.token.tolist()
    for mine, other in zip(astuple(ours)[1:], astuple(oracle)[1:], strict=True):
        np.testing.assert_allclose(mine.numpy(), other, rtol=1e-12, atol=TOLERANCE)


def _batch(rows: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, size)) * 6).astype(np.float32)
    mask = np.stack([pack_mask(each) for each in rng.random((rows, size)) < 0.3])
    return logits, mask, rng.random((rows, 5, 2), np.float32).astype(np.float64)


@pytest.mark.parametrize("temperature", [0.0, 0.05, 1.0, 2.0])
def test_the_draws_of_numpy(temperature: float) -> None:
    """With what was rejected before, in several blocks, twice, and -1 between."""
    logits, mask, uniforms = _batch(3, 2 * BLOCK + 77)
    first = draw_without_replacement(logits, mask, uniforms[:, ::-1], temperature=temperature)
    rejected = np.full((3, 9), -1)
    rejected[:, 2:7] = first.token
    rejected[1:, 7] = first.token[1:, 0]
    rejected[2] = -1
    options: dict[str, Any] = {"temperature": temperature, "rejected": rejected}
    ours = draw_without_replacement(
        torch.tensor(logits), _words(mask), uniforms, backend="triton", **options
    )
    _agree(ours, draw_without_replacement(logits, mask, uniforms, **options))


@given(
    st.integers(1, BLOCK + 60),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["bfloat16", "float16", "float32"]),
    st.sampled_from([0.05, 1.0]),
    st.integers(1, 6),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_shapes(size: int, seed: int, dtype: str, temperature: float, count: int) -> None:
    """Few tokens that are allowed or have mass, odd strides, keys: to the end of what is left."""
    rng = np.random.default_rng(seed)
    buffer = torch.tensor(rng.normal(size=(2, size + 3)) * 5, dtype=getattr(torch, dtype))
    logits = buffer[:, 1 : 1 + size]
    logits[torch.tensor(rng.random((2, size)) < rng.choice([0.0, 0.9]))] = -np.inf
    if seed % 4 == 0:
        logits[1, rng.integers(size)] = float(rng.choice([np.nan, np.inf]))
    allowed = rng.random((2, size)) < min(rng.choice([1.0, 4.0]) / size, 1.0)
    mask = np.stack([pack_mask(each) for each in allowed])
    keys = Keys(rng.integers(0, 2**62, 2), np.array([1, 2]), np.array([3, 4]), 0, first=1)
    options: dict[str, Any] = {"temperature": temperature, "count": count}
    ours = draw_without_replacement(logits, _words(mask), keys, backend="triton", **options)
    oracle = draw_without_replacement(logits.float().numpy(), mask, keys, **options)
    _agree(ours, oracle)


def test_one_call_or_two() -> None:
    """Five draws are three, and two more that go on from what the three took."""
    logits, mask, _ = _batch(2, 3000, seed=1)
    tensor, words = torch.tensor(logits), _words(mask)
    numbers = np.arange(2)
    first, then = Keys(numbers, numbers, numbers, 0), Keys(numbers, numbers, numbers, 0, first=3)
    whole = draw_without_replacement(tensor, words, first, count=5, backend="triton")
    begin = draw_without_replacement(tensor, words, first, count=3, backend="triton")
    rest = draw_without_replacement(
        tensor, words, then, count=2, rejected=begin.token, backend="triton"
    )
    assert torch.equal(torch.cat([begin.token, rest.token], dim=1), whole.token)
    together = torch.cat([begin.log_live, rest.log_live], dim=1)
    assert torch.equal(together, whole.log_live)


def _steep() -> tuple[np.ndarray, Draws]:
    """Each token of a block 19 nats below the one before: what is left is always far below what a
    sum in fp32 holds.
    """
    logits = np.full((1, 200), -np.inf, np.float32)
    logits[0, 10:16] = -19.0 * np.arange(6)
    noise = np.zeros((1, 6, 2))
    return logits, draw_without_replacement(torch.tensor(logits), None, noise, backend="triton")


def _check_live(logits: np.ndarray, token: np.ndarray, log_live: np.ndarray) -> None:
    live = logits.astype(np.float64)
    for drawn, value in zip(token, log_live, strict=True):
        assert value == pytest.approx(logsumexp(live), abs=TOLERANCE)
        live[drawn] = -np.inf


def test_what_is_left_is_summed_again() -> None:
    logits, draws = _steep()
    assert draws.token[0].tolist() == [10, 11, 12, 13, 14, 15]
    _check_live(logits[0], draws.token[0].numpy(), draws.log_live[0].numpy())


def test_a_subtracted_sum_fails_the_same_check() -> None:
    """The block's sum less what was drawn, in fp32, as a kernel that does not read again has it."""
    logits, draws = _steep()
    weights = np.exp(logits[0] - logits.max())
    left, log_live = weights.sum(dtype=np.float32), []
    for token in draws.token[0].tolist():
        with np.errstate(all="ignore"):
            log_live.append(float(np.log(left)))
        left -= weights[token]
    with pytest.raises(AssertionError):
        _check_live(logits[0], draws.token[0].numpy(), np.array(log_live))


def test_nothing_left() -> None:
    logits = torch.zeros(3, 70)
    logits[1, 3] = np.nan
    words = torch.zeros(3, 3, dtype=torch.int32)
    words[:2, 0] = 0b100100
    draws = draw_without_replacement(logits, words, np.full((3, 4, 2), 0.5), backend="triton")
    assert sorted(draws.token[0].tolist()) == [-1, -1, 2, 5]
    assert draws.token[1:].eq(-1).all() and draws.log_p[1:].isneginf().all()
    assert draws.log_live[0, 2:].isneginf().all() and draws.log_live[1:].isneginf().all()
    assert draws.log_z_all.isnan().tolist() == [False, True, False]
    empty = draw_without_replacement(logits[:0], None, np.zeros((0, 4, 2)), backend="triton")
    assert empty.token.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("noise", {"noise": np.zeros((2, 3, 2))}),
        ("noise", {"noise": np.zeros((1, 3))}),
        ("count", {"noise": Keys(*np.zeros((3, 1), np.int64), 0)}),
        ("rejected", {"rejected": np.zeros((2, 1), np.int64)}),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any]) -> None:
    right = {"logits": torch.zeros(1, 4), "mask": None, "noise": np.zeros((1, 1, 2))}
    with pytest.raises(ValueError, match=f"^{name}: got"):
        draw_without_replacement(**{**right, **arguments}, backend="triton")
