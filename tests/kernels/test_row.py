"""One row read once: masses, draws and removals against float64 softmax."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.row import BLOCK, Row

SIZES = [1, 2, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7]


def _row(size: int, seed: int = 0, dtype: type = np.float64, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * scale).astype(dtype)


def _restricted(logits: np.ndarray, allowed: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = np.where(allowed, logits.astype(np.float64) / temperature, -np.inf)
    return softmax(scaled) if allowed.any() else np.zeros(logits.size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_masses_and_law(size: int, temperature: float) -> None:
    logits = _row(size)
    allowed = np.random.default_rng(1).random(size) < 0.4
    allowed[size // 2] = True
    row = Row(logits, pack_mask(allowed), 1 / temperature, with_entropy=True)
    assert row.log_z_all == pytest.approx(logsumexp(logits / temperature), abs=1e-12)
    expected = logsumexp(logits[allowed] / temperature)
    assert row.log_z_allowed == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(row.law(), _restricted(logits, allowed, temperature), rtol=1e-11)
    p = softmax(logits / temperature)
    assert row.entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-9)
    assert row.log_p(size // 2) == pytest.approx(np.log(p[size // 2]), abs=1e-11)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_float32_rows_keep_their_weights(temperature: float) -> None:
    """Log masses are formed in float64 from the row's own numbers: 2e-6 at any temperature."""
    logits = _row(128_256, dtype=np.float32)
    allowed = np.random.default_rng(2).random(logits.size) < 0.001
    row = Row(logits, pack_mask(allowed), 1 / temperature, with_entropy=True)
    exact = logits.astype(np.float64) / temperature
    p = softmax(exact)
    assert row.entropy == pytest.approx(-(p * (exact - logsumexp(exact))).sum(), abs=1e-5)
    assert np.isnan(Row(logits).entropy)
    assert row.log_z_all == pytest.approx(logsumexp(exact), abs=2e-6)
    assert row.log_z_allowed == pytest.approx(logsumexp(exact[allowed]), abs=2e-6)


def _log_z_allowed_with_one_maximum(
    logits: np.ndarray, allowed: np.ndarray, temperature: float
) -> float:
    """The field's known bug: the allowed set measured against the maximum of the whole row."""
    weights = np.exp((logits - logits.max()) / np.float32(temperature))
    with np.errstate(divide="ignore"):
        return float(np.log(weights[allowed].sum()) + logits.max() / temperature)


def test_the_allowed_set_has_its_own_maximum() -> None:
    logits = _row(5000, dtype=np.float32)
    allowed = logits < np.sort(logits)[2500]
    exact = logsumexp(logits.astype(np.float64)[allowed] / 0.02)
    row = Row(logits, pack_mask(allowed), 50.0)
    assert row.log_z_allowed == pytest.approx(exact, abs=1e-5)
    assert _log_z_allowed_with_one_maximum(logits, allowed, 0.02) == -np.inf


def test_what_is_left_is_summed_again() -> None:
    """The most probable tokens go one after another, far below what float32 could subtract."""
    logits = np.linspace(0, -400, 60).astype(np.float32)
    row = Row(logits)
    for token in range(59):
        row.remove([token])
        exact = logsumexp(logits.astype(np.float64)[token + 1 :])
        assert row.log_live() == pytest.approx(exact, abs=1e-5)
        assert row.take(np.array([[0.0, 0.0]]))[0] > token
    row.remove([59])
    assert row.log_live() == -np.inf
    assert not row.law().any()


@given(st.integers(1, 5000), st.integers(0, 2**32 - 1), st.floats(0.01, 5), st.data())
@settings(max_examples=60, deadline=None)
def test_removals_leave_the_rest(size: int, seed: int, scale: float, data: st.DataObject) -> None:
    logits = _row(size, seed, scale=scale)
    removed = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=min(size - 1, 40)))
    row = Row(logits)
    apart = row.copy()
    for start in range(0, len(removed), 3):
        row.take(np.array([[0.3, 0.7]]))  # fills what removal must renew
        row.remove(removed[start : start + 3])
    left = np.ones(size, np.bool_)
    left[removed] = False
    np.testing.assert_allclose(row.law(), _restricted(logits, left), rtol=1e-9)
    np.testing.assert_allclose(apart.law(), softmax(logits), rtol=1e-9)
    token = int(np.flatnonzero(left)[0])
    assert row.share([token]) == pytest.approx(row.law()[token], rel=1e-9)


@pytest.mark.parametrize("size", [5, BLOCK + 60])
def test_two_uniforms_give_the_law(size: int) -> None:
    """On a grid of uniforms each token takes the area that its probability says."""
    logits = _row(size, scale=2.0)
    if size > 5:  # most mass in a few tokens of both blocks, or no cell of the grid is theirs
        logits[[3, 700, BLOCK - 1, BLOCK, BLOCK + 40]] += 12.0
    row = Row(logits)
    side = 500
    grid = (np.arange(side) + 0.5) / side
    uniforms = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    shares = np.bincount(row.take(uniforms), minlength=size) / side**2
    assert np.abs(shares - row.law()).max() < 2 / side


def _by_blocks(law: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """The inverse of the cumulative law in two steps, a block and a token inside it, in float64."""
    blocks = np.zeros((-(-law.size // BLOCK), BLOCK))
    blocks.reshape(-1)[: law.size] = law
    cumulative = np.cumsum(blocks.sum(axis=1))
    tokens = []
    for first, second in uniforms:
        block = int(np.searchsorted(cumulative, first * cumulative[-1], side="right"))
        inside = np.cumsum(blocks[block])
        token = int(np.searchsorted(inside, second * inside[-1], side="right"))
        tokens.append(block * BLOCK + token)
    return np.array(tokens)


@pytest.mark.parametrize("size", [4 * BLOCK + 1, 20_000, 128_256])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_long_rows(size: int, dtype: type) -> None:
    """Draws, masses and removals in rows whose sums are kept by chunks."""
    rng = np.random.default_rng(4)
    logits = _row(size, dtype=dtype)
    allowed = rng.random(size) < 0.3
    row = Row(logits, pack_mask(allowed))
    uniforms = rng.random((500, 2))
    for _ in range(4):
        expected = _restricted(logits, allowed)
        np.testing.assert_allclose(row.law(), expected, rtol=1e-5 if dtype is np.float32 else 1e-11)
        live = logsumexp(logits.astype(np.float64)[allowed])
        assert row.log_live() == pytest.approx(live, abs=2e-6)
        differ = row.take(uniforms) != _by_blocks(expected, uniforms)
        assert differ.sum() <= (2 if dtype is np.float32 else 0)
        heaviest = np.argsort(-np.where(allowed, logits, -np.inf))[:40]
        removed = np.concatenate([heaviest, rng.choice(np.flatnonzero(allowed), 200)])
        removed = np.unique(removed)
        row.remove(removed.tolist())
        allowed[removed] = False


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.floats(0, 0.99999994))
@settings(max_examples=80, deadline=None)
def test_draws_never_leave_the_support(size: int, seed: int, u: float) -> None:
    rng = np.random.default_rng(seed)
    logits = np.where(rng.random(size) < 0.9, -np.inf, rng.normal(size=size) * 20)
    logits[rng.integers(size)] = 1.0
    allowed = rng.random(size) < 0.7
    allowed[np.argmax(logits)] = True
    uniforms = np.array([[a, b] for a in (0.0, u, 0.99999994) for b in (0.0, u, 0.99999994)])
    tokens = Row(logits, pack_mask(allowed)).take(uniforms)
    assert allowed[tokens].all()
    assert np.isfinite(logits[tokens]).all()


def test_a_small_uniform_step_in_one_call_or_many() -> None:
    row, again = Row(_row(9000)), Row(_row(9000))
    uniforms = np.random.default_rng(3).random((50, 2))
    together = row.take(uniforms)
    assert [int(again.take(u[None])[0]) for u in uniforms] == together.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_broken_rows_say_so(value: float, dtype: type) -> None:
    logits = _row(3000, dtype=dtype)
    logits[2500] = value
    assert not Row(logits).finite
    assert not Row(logits, pack_mask(np.ones(3000, np.bool_))).finite


def test_rows_of_nothing() -> None:
    for fill in (-np.inf, np.finfo(np.float32).min):
        row = Row(np.full(10, fill, np.float32))
        assert row.finite
        assert row.log_z_all == -np.inf
        assert not row.law().any()
    masked_out = Row(_row(10), np.zeros(1, np.uint32))
    assert masked_out.log_z_allowed == -np.inf < masked_out.log_z_all


def test_a_short_mask_allows_nothing_beyond_it() -> None:
    row = Row(np.zeros(100), np.full(1, 0xFFFFFFFF, np.uint32))
    assert np.flatnonzero(row.law()).tolist() == list(range(32))
