"""Masked sampling in the interpreter against numpy and float64."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from torch.utils._python_dispatch import TorchDispatchMode

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.blocks import BLOCK
from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import (
    NOT_FINITE,
    NOTHING_ALLOWED,
    OK,
    MaskedSample,
    masked_sample,
)

TOLERANCE = 2e-6
BOUNDARY = 1e-6


def _words(mask: np.ndarray) -> torch.Tensor:
    return torch.tensor(mask.view(np.int32))


def _masks(allowed: np.ndarray) -> np.ndarray:
    return np.stack([pack_mask(each) for each in allowed])


def _uniforms(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Of the precision of float32, as they come from Philox."""
    return rng.random(shape, np.float32).astype(np.float64)


def _near_a_boundary(
    logits: np.ndarray, allowed: np.ndarray, temperature: float, uniforms: np.ndarray
) -> bool:
    """Whether a uniform lies within 1e-6 of where the law, in float64, turns to the next token."""
    x = np.where(allowed, logits.astype(np.float64) / (temperature or 1.0), -np.inf)
    p = np.zeros(-(-x.size // BLOCK) * BLOCK)
    p[: x.size] = np.exp(x - logsumexp(x))
    blocks = p.reshape(-1, BLOCK)
    ends = np.cumsum(blocks.sum(axis=1))
    block = min(int(np.searchsorted(ends, uniforms[0], side="right")), len(blocks) - 1)
    inside = np.cumsum(blocks[block]) / blocks[block].sum()
    # The end of the last block is no boundary: no uniform lies beyond it.
    return bool(
        np.abs(ends[:-1] - uniforms[0]).min(initial=1.0) < BOUNDARY
        or np.abs(inside[inside < 1 - 1e-12] - uniforms[1]).min(initial=1.0) < BOUNDARY
    )


def _agree(ours: MaskedSample, oracle: MaskedSample, *, near: list[bool]) -> None:
    """All values within 2e-6 (entropy 1e-5), tokens equal except near a boundary."""
    same = ours.token.numpy() == oracle.token
    assert (same | near).all()
    assert (ours.status.numpy() == oracle.status).all()
    values = [each.numpy() for each in astuple(ours)[1:6]]
    for mine, other, tolerance in zip(
        values, astuple(oracle)[1:6], [TOLERANCE] * 4 + [1e-5], strict=True
    ):
        compared = same if mine is values[0] else slice(None)
        np.testing.assert_allclose(mine[compared], other[compared], rtol=1e-12, atol=tolerance)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 2.0])
def test_values_against_float64(temperature: float) -> None:
    """log_p and log_weight within 2e-6, where what is allowed lies more than 87 nats below the top
    (at T = 0.05 and 0.3), with logits up to +-30.
    """
    rng = np.random.default_rng(3)
    rows = 4
    logits = rng.uniform(-30, 30, (rows, 5003)).astype(np.float32)
    allowed = (logits < 30 - min(90 * temperature, 45)) & (rng.random(logits.shape) < 0.3)
    uniforms = _uniforms(rng, rows, 2)
    mask = _masks(allowed)
    sample = masked_sample(
        torch.tensor(logits), _words(mask), uniforms, temperature=temperature, backend="triton"
    )
    x = logits.astype(np.float64) / temperature
    log_z_all = logsumexp(x, axis=1)
    log_z_allowed = logsumexp(np.where(allowed, x, -np.inf), axis=1)
    token = sample.token.numpy()
    assert allowed[np.arange(rows), token].all()
    exact_log_p = x[np.arange(rows), token] - log_z_all
    np.testing.assert_allclose(sample.log_p, exact_log_p, rtol=0, atol=TOLERANCE)
    log_weight = log_z_allowed - log_z_all
    np.testing.assert_allclose(sample.log_weight, log_weight, rtol=0, atol=TOLERANCE)
    assert (sample.status == OK).all()


def test_tokens_are_those_of_numpy() -> None:
    """200 draws through one read of two rows: none differs that is not near a boundary, and those
    that are near one are few.
    """
    rng = np.random.default_rng(4)
    logits = (rng.normal(size=(2, 4500)) * 4).astype(np.float32)
    allowed = rng.random(logits.shape) < 0.3
    index = rng.integers(0, 2, 200)
    uniforms = _uniforms(rng, 200, 2)
    mask = _masks(allowed)
    ours = masked_sample(
        torch.tensor(logits), _words(mask), uniforms, indices=index, backend="triton"
    )
    oracle = masked_sample(logits, mask, uniforms, indices=index)
    near = [
        _near_a_boundary(logits[i], allowed[i], 1.0, u)
        for i, u in zip(index, uniforms, strict=True)
    ]
    assert sum(near) <= 4  # 2,700 boundaries of 1e-6 to both sides: 0.5% of draws
    _agree(ours, oracle, near=near)


@pytest.mark.parametrize(("size", "dtype"), [(128_256, torch.bfloat16), (151_936, torch.float32)])
def test_vocabularies_of_real_models(size: int, dtype: torch.dtype) -> None:
    """63 and 75 blocks, of which those without mass fill up a power of 2."""
    rng = np.random.default_rng(9)
    logits = torch.tensor(rng.normal(size=(1, size)) * 4, dtype=dtype)
    mask = pack_mask(rng.random(size) < 0.01)[None]
    index = np.zeros(20, np.int64)
    uniforms = _uniforms(rng, 20, 2)
    ours = masked_sample(logits, _words(mask), uniforms, indices=index, backend="triton")
    oracle = masked_sample(logits, _words(mask), uniforms, indices=index, backend="numpy")
    oracle = MaskedSample(*(each.numpy() for each in astuple(oracle)))
    _agree(ours, oracle, near=[False] * 20)


@given(
    st.integers(1, 2 * BLOCK + 100),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.05, 1.0, 2.0]),
    st.sampled_from(["bfloat16", "float16", "float32"]),
    st.sampled_from(["some", "one", "none", "short", "long", "all"]),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None, derandomize=True)
@example(1, 1, 0, 1.0, "float32", "all", 0)
@example(BLOCK, 2, 1, 0.05, "bfloat16", "some", 0)
@example(2 * BLOCK + 1, 2, 2, 0.0, "float16", "short", 3)
def test_shapes(
    size: int, rows: int, seed: int, temperature: float, dtype: str, kind: str, padding: int
) -> None:
    """Sizes, strides and offsets that are a multiple of nothing, masks of every length, and rows
    with -inf, +inf, NaN and the least finite number.
    """
    rng = np.random.default_rng(seed)
    buffer = torch.tensor(rng.normal(size=(rows, size + padding)) * 8, dtype=getattr(torch, dtype))
    logits = buffer[:, padding // 2 : padding // 2 + size]
    special = [-np.inf, np.inf, np.nan, torch.finfo(logits.dtype).min]
    for row in logits:
        if rng.random() < 0.3:
            at = rng.random(size) < rng.choice([0.01, 1.0])
            row[torch.tensor(at)] = float(rng.choice(special))
    allowed = rng.random((rows, size)) < 0.4
    if kind == "one":
        allowed[:] = np.arange(size) == rng.integers(size)
    elif kind == "none":
        allowed[:] = False
    mask = _masks(allowed)
    if kind == "short":
        mask = np.ascontiguousarray(mask[:, : rng.integers(0, mask.shape[1] + 1)])
        allowed[:, 32 * mask.shape[1] :] = False
    elif kind == "long":
        mask = np.pad(mask, ((0, 0), (0, 3)), constant_values=np.uint32(0xFFFFFFFF))
    words = None if kind == "all" else _words(mask)
    if kind == "all":
        allowed[:] = True
    uniforms = _uniforms(rng, rows, 2)
    ours = masked_sample(logits, words, uniforms, temperature=temperature, backend="triton")
    oracle = masked_sample(
        logits.float().numpy(),
        None if words is None else mask,
        uniforms,
        temperature=temperature,
    )
    near = [
        bool(oracle.status[i] == OK)
        and _near_a_boundary(logits[i].float().numpy(), allowed[i], temperature, uniforms[i])
        for i in range(rows)
    ]
    _agree(ours, oracle, near=near)


def test_dead_rows_are_values() -> None:
    """A bad logit outside the mask counts, as does one in another block than the draw."""
    logits = torch.zeros(6, BLOCK + 40)
    logits[1, BLOCK + 3] = np.nan
    logits[2, 50] = np.inf
    logits[3] = -np.inf
    logits[4] = torch.finfo(torch.float32).min
    mask = np.zeros((6, 65), np.uint32)
    mask[1:, 2] = 1
    sample = masked_sample(logits, _words(mask), np.zeros((6, 2)), backend="triton")
    nothing, broken = NOTHING_ALLOWED, NOT_FINITE
    assert sample.status.tolist() == [nothing, broken, broken, nothing, nothing, OK]
    assert sample.token.tolist() == [-1, -1, -1, -1, -1, 64]
    assert torch.isneginf(sample.log_weight[:5]).all() and torch.isneginf(sample.log_p[:5]).all()
    assert torch.isnan(sample.log_z_all[1:3]).all()
    assert torch.isneginf(sample.log_z_allowed[[0, 3, 4]]).all()


def test_greedy_rows_beside_others() -> None:
    """T = 0: the largest allowed, of equals the lowest id, in an earlier block too; masses at 1."""
    rng = np.random.default_rng(5)
    logits = rng.integers(-4, 5, (3, 4200)).astype(np.float32)
    allowed = rng.random(logits.shape) < 0.01
    mask = _masks(allowed)
    temperature = np.array([0.0, 0.7, 0.0])
    uniforms = _uniforms(rng, 3, 2)
    sample = masked_sample(
        torch.tensor(logits), _words(mask), uniforms, temperature=temperature, backend="triton"
    )
    _agree(
        sample,
        masked_sample(logits, mask, uniforms, temperature=temperature),
        near=[False] * 3,
    )
    best = np.where(allowed, logits, -np.inf).argmax(axis=1)
    assert sample.token[[0, 2]].tolist() == best[[0, 2]].tolist()
    whole = logsumexp(logits[0].astype(np.float64))
    assert float(sample.log_p[0]) == pytest.approx(logits[0, best[0]] - whole, abs=TOLERANCE)


@pytest.mark.parametrize("rows", [1, 7, 64, 256])
def test_a_row_is_the_same_in_any_batch_and_place(rows: int) -> None:
    """Bit for bit, of rows of two blocks that are the same whatever their company."""
    size = 2 * BLOCK + 1 if rows < 64 else 301
    rng = np.random.default_rng(6)
    row = torch.tensor(rng.normal(size=size) * 5, dtype=torch.float32)
    allowed = rng.random(size) < 0.2
    logits = torch.tensor(rng.normal(size=(rows, size)), dtype=torch.float32)
    mask = rng.integers(0, 2**32, (rows, -(-size // 32)), np.uint32)
    keys = Keys(rng.integers(0, 2**62, rows), np.arange(rows), np.arange(rows), 0)
    alone = masked_sample(
        row[None],
        _words(_masks(allowed[None])),
        Keys(*(np.array([n]) for n in (2**50 + 3, 4, 5)), 0),
        temperature=0.8,
        backend="triton",
    )
    temperature = np.full(rows, 1.5)
    for place in {0, rows // 2, rows - 1}:
        logits[place], mask[place], temperature[place] = row, pack_mask(allowed), 0.8
        for array, value in zip(
            (keys.seed, keys.sequence, keys.position), (2**50 + 3, 4, 5), strict=True
        ):
            array[place] = value
    batch = masked_sample(logits, _words(mask), keys, temperature=temperature, backend="triton")
    for mine, lone in zip(astuple(batch), astuple(alone), strict=True):
        assert all(mine[place] == lone[0] for place in {0, rows // 2, rows - 1})


def test_particles_share_the_statistics_of_their_row() -> None:
    """Draws by `indices` are those of the rows repeated, bit for bit."""
    rng = np.random.default_rng(7)
    logits = torch.tensor(rng.normal(size=(3, 500)), dtype=torch.float32)
    mask = _words(rng.integers(0, 2**32, (3, 16), np.uint32))
    index = np.array([2, 0, 0, 2, 2])
    uniforms = _uniforms(rng, 5, 2)
    temperature = np.array([0.5, 1.0, 2.0])
    shared = masked_sample(
        logits, mask, uniforms, indices=index, temperature=temperature, backend="triton"
    )
    repeated = masked_sample(
        logits[index], mask[index], uniforms, temperature=temperature[index], backend="triton"
    )
    for mine, other in zip(astuple(shared), astuple(repeated), strict=True):
        assert (mine == other).all()


def test_empty_batches() -> None:
    for rows, index in ((0, None), (2, np.zeros(0, np.int64))):
        noise = np.zeros((0, 2))
        sample = masked_sample(torch.zeros(rows, 10), None, noise, indices=index, backend="triton")
        assert sample.token.shape == (0,) and sample.log_weight.shape == (0,)
    sample = masked_sample(torch.zeros(1, 0), None, np.zeros((1, 2)), backend="triton")
    assert sample.status.tolist() == [NOTHING_ALLOWED]


class _Forbid(TorchDispatchMode):
    """Fails on what would wait for the device."""

    waits = ("_local_scalar_dense", "item", "nonzero", "equal", "unique", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.waits, name
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    """With everything in tensors no value is asked for: a CUDA graph can hold the calls."""
    keys = Keys(*(torch.arange(2) for _ in range(3)), 0)
    temperature = torch.tensor([0.0, 1.0])
    with _Forbid():
        sample = masked_sample(
            torch.zeros(2, 33),
            torch.full((2, 2), -1, dtype=torch.int32),
            keys,
            temperature=temperature,
            indices=torch.tensor([0, 1]),
            backend="triton",
        )
    assert (sample.status == OK).all()
    with _Forbid(), pytest.raises(AssertionError):
        sample.token.max().item()


@pytest.mark.parametrize("temperature", [-1.0, np.nan, np.inf, 1e-9])
def test_what_is_no_temperature(temperature: float) -> None:
    """A number is refused; in a tensor, which the host does not read, its row is not finite."""
    logits, noise = torch.zeros(2, 40), np.zeros((2, 2))
    with pytest.raises(ValueError, match="temperature"):
        masked_sample(logits, None, noise, temperature=temperature, backend="triton")
    tensor = torch.tensor([1.0, temperature])
    sample = masked_sample(logits, None, noise, temperature=tensor, backend="triton")
    assert sample.status.tolist() == [OK, NOT_FINITE]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("logits", {"logits": torch.zeros(4)}),
        ("logits", {"logits": torch.zeros(1, 4, dtype=torch.float64)}),
        ("logits", {"logits": torch.zeros(4, 2).T[:1]}),
        ("mask", {"mask": torch.zeros(2, 1, dtype=torch.int32)}),
        ("mask", {"mask": torch.zeros(1, 1, dtype=torch.int64)}),
        ("noise", {"noise": np.zeros((2, 2))}),
        ("noise", {"noise": np.zeros((1, 2), np.int64)}),
        ("noise", {"noise": Keys(*np.zeros((3, 2), np.int64), 0)}),
        ("top_k", {"top_k": -1, "truncation": "target"}),
        ("truncation", {"top_k": 3}),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any]) -> None:
    right = {"logits": torch.zeros(1, 4), "mask": None, "noise": np.zeros((1, 2))}
    with pytest.raises(ValueError, match=f"^{name}: got"):
        masked_sample(**{**right, **arguments}, backend="triton")
