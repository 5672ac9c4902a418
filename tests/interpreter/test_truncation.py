"""Top-k, top-p and min-p in the interpreter against numpy: the same sets, masses and draws."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.filters import Filters
from midstream.kernels.masked_sampling import NOT_FINITE, OK, MaskedSample, masked_sample
from midstream.kernels.triton import truncation
from midstream.kernels.triton.block_stats import block_stats
from midstream.kernels.triton.launch import as_temperature
from midstream.kernels.triton.truncation import Truncated, truncate
from midstream.kernels.triton.truncation_candidates import _candidates
from midstream.kernels.truncation import ALL_TIES, Edge, truncated_set

NEAR = 1e-6
"""How near a tail may come to the edge of top-p, relative to it, before sums decide by rounding."""

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _words(allowed: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.stack([pack_mask(each) for each in allowed]).view(np.int32))


def _truncate(
    logits: torch.Tensor, allowed: np.ndarray | None, temperature: Any, filters: Filters
) -> Truncated:
    mask = None if allowed is None else _words(allowed)
    of_rows = as_temperature(temperature, logits)
    return truncate(logits, mask, block_stats(logits, mask, of_rows), of_rows, filters)


def _kept(cut: Truncated, logits: torch.Tensor) -> np.ndarray:
    """What `pick` draws from, mask apart: bool [R, V]."""
    edges = zip(cut.threshold.tolist(), cut.tie.tolist(), strict=True)
    rows = logits.float().numpy()
    kept = [Edge(*edge).keeps(row) for edge, row in zip(edges, rows, strict=True)]
    return np.stack(kept) & (rows > NO_MASS)


def _nearest(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> float:
    """How near a tail of what top-k keeps comes to the edge of top-p, relative to it."""
    if top_p == 1:
        return np.inf
    x = np.sort(logits[truncated_set(logits, top_k=top_k)].astype(np.float64)) / temperature
    tail = np.cumsum(np.exp(x - x[-1:]))
    return float(np.abs(tail / ((1 - top_p) * tail[-1:]) - 1).min(initial=np.inf))


def _check(
    logits: torch.Tensor,  # [R, V]
    allowed: np.ndarray,
    temperature: list[float],
    options: list[dict[str, Any]],  # of each row
    truncation: Any,
) -> int:
    """Kept sets are those of the oracle, but where a tail lies at the edge: of how many rows."""
    top_k, top_p, min_p = (
        torch.tensor([each[name] for each in options]) for name in ("top_k", "top_p", "min_p")
    )
    filters = Filters(top_k, top_p, min_p, truncation)
    kept = _kept(_truncate(logits, allowed, np.array(temperature), filters), logits)
    rows = logits.float().numpy()
    if truncation == "after_mask":
        rows = np.where(allowed, rows, np.float32(-np.inf))
        kept &= allowed
    near = 0
    for row, ours, t, each in zip(rows, kept, temperature, options, strict=True):
        if t == 0:
            expected = row > NO_MASS
        else:
            expected = truncated_set(row, inverse_temperature=1 / t, **each)
            if _nearest(row, t, each["top_k"], each["top_p"]) < NEAR:
                near += 1
                continue
        assert (ours == expected).all(), (t, each, ours.sum(), expected.sum())
    return near


def _options(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> dict[str, Any]:
    return {"top_k": top_k, "top_p": top_p, "min_p": min_p}


def _random_case(seed: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, np.ndarray]:
    """Two rows: spread or not, with ties or not, with -inf or not; and what is allowed."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, size)) * rng.choice([0, 1e-6, 0.01, 1, 3, 30]) + rng.choice([0, 20])
    if rng.random() < 0.4:
        x = np.round(x * 2) / 2
    x[rng.random((2, size)) < rng.choice([0, 0.3, 0.95])] = -np.inf
    return torch.tensor(x, dtype=dtype), rng.random((2, size)) < rng.choice([0, 0.01, 0.5, 1])


SIZES = st.sampled_from([1, 2, 31, 300, BLOCK, BLOCK + 1, 5003, 9001])
KS = st.sampled_from([0, 0, 1, 2, 5, 50, 100, 129, 5003])
PS = st.sampled_from([1.0, 1.0, 1e-9, 0.5, 0.9, 0.99, 1 - 1e-7])
MINIMA = st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.999])
TEMPERATURES = st.sampled_from([0.0, 1e-6, 0.05, 0.7, 1.0, 100.0])
ROW = st.tuples(TEMPERATURES, st.builds(_options, KS, PS, MINIMA))


@given(
    SIZES,
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
    st.sampled_from(["target", "after_mask"]),
    st.lists(ROW, min_size=2, max_size=2),
)
@example(
    5003, 0, torch.float32, "target", [(0.7, _options(50, 0.9)), (1.0, _options(0, 0.9, 0.01))]
)
@settings(max_examples=20, deadline=None)
def test_the_same_sets_as_numpy(
    size: int,
    seed: int,
    dtype: torch.dtype,
    truncation: str,
    rows: list[tuple[float, dict[str, Any]]],
) -> None:
    logits, allowed = _random_case(seed, size, dtype)
    if _check(logits, allowed, [t for t, _ in rows], [each for _, each in rows], truncation):
        event("a tail at the edge")


def test_few_rows_lie_at_the_edge() -> None:
    """Of 10 rows of 700 tokens, none: what the other tests leave out is rare."""
    rng = np.random.default_rng(8)
    logits = torch.tensor(rng.normal(size=(10, 700)) * 2, dtype=torch.float32)
    allowed = np.ones((10, 700), np.bool_)
    options = [_options(int(rng.integers(0, 3)) * 30, rng.uniform(0.3, 0.999)) for _ in range(10)]
    assert _check(logits, allowed, [1.0] * 10, options, "target") == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties(dtype: torch.dtype) -> None:
    """Of equals top-k and min-p keep all, top-p the first; both zeros are equal."""
    values = np.zeros((5, 2 * BLOCK))
    values[:, ::2] = -0.0
    values[:, [7, 3000]] = 2.0
    logits = torch.tensor(values, dtype=dtype)
    top_p = 1 - 1000.5 / (2 * np.exp(2) + 2 * BLOCK - 2)
    filters = Filters(
        torch.tensor([1, 2, 3, 0, 0]),
        torch.tensor([1, 1, 1, top_p, 1], dtype=torch.float64),
        torch.tensor([0, 0, 0, 0, np.exp(-2) * 0.9]),
        "target",
    )
    cut = _truncate(logits, None, 1.0, filters)
    kept = _kept(cut, logits)
    assert kept.sum(axis=1).tolist() == [2, 2, 2 * BLOCK, 2 * BLOCK - 1000, 2 * BLOCK]
    assert kept[3, : 2 * BLOCK - 1000].all()
    assert cut.tie.tolist() == [ALL_TIES] * 3 + [2 * BLOCK - 1001, ALL_TIES]


@pytest.mark.parametrize("truncation", ["target", "after_mask"])
@pytest.mark.parametrize("masked", [True, False])
def test_partials_of_what_is_kept(truncation: Any, masked: bool) -> None:
    """Sums within 1e-6 of float64; of a row that nothing cuts, the same bits."""
    rng = np.random.default_rng(2)
    logits = torch.tensor(rng.normal(size=(3, 5003)) * 2, dtype=torch.float32)
    allowed = rng.random((3, 5003)) < 0.4
    mask = _words(allowed) if masked else None
    t = as_temperature(np.array([0.3, 1.0, 0.0]), logits)
    before = block_stats(logits, mask, t)
    cut = truncate(logits, mask, before, t, Filters(60, 0.9, 0.0, truncation))
    assert torch.equal(cut.partials[2], before[2])
    kept = _kept(cut, logits)
    whole = kept if truncation == "target" else np.ones_like(kept)
    drawn = kept & allowed if masked else kept
    for row, temperature in ((0, 0.3), (1, 1.0)):
        for block in range(3):
            here = slice(block * BLOCK, (block + 1) * BLOCK)
            m, s, mo, so, tn = cut.partials[row, :, block].tolist()
            x = logits[row, here].double().numpy() / temperature
            for top, total, those in ((m, s, whole), (mo, so, drawn)):
                mass = np.exp(x - top / temperature)[those[row, here]]
                assert total == pytest.approx(mass.sum(), rel=1e-6)
            d = (x - m / temperature)[whole[row, here]]
            assert tn == pytest.approx((np.exp(d) * d).sum() / np.log(2), rel=1e-5)


def _agree(ours: MaskedSample, oracle: MaskedSample) -> None:
    assert (ours.token.numpy() == oracle.token).all()
    assert (ours.status.numpy() == oracle.status).all()
    tolerances = [2e-6] * 4 + [1e-5]
    pairs = zip(astuple(ours)[1:6], astuple(oracle)[1:6], tolerances, strict=True)
    for mine, other, tolerance in pairs:
        np.testing.assert_allclose(mine.numpy(), other, rtol=1e-12, atol=tolerance)


@pytest.mark.parametrize("truncation", ["target", "after_mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_are_those_of_numpy(truncation: Any, dtype: torch.dtype) -> None:
    """Tokens, weights and entropy through `masked_sample`; a filter of each kind, all, none, and a
    row that is dead, under temperatures from 0 to 2.
    """
    rng = np.random.default_rng(6)
    logits = torch.tensor(rng.normal(size=(7, 4500)) * 3, dtype=dtype)
    allowed = rng.random((7, 4500)) < 0.3
    allowed[5] = logits[5].float().numpy() < 0
    arguments: dict[str, Any] = {
        "temperature": np.array([0.05, 1.0, 2.0, 0.7, 0.0, 1.0, 1.0]),
        "top_k": np.array([0, 50, 0, 200, 5, 3, 0]),
        "top_p": np.array([0.95, 1.0, 1.0, 0.9, 0.5, 1.0, 1.0]),
        "min_p": np.array([0.0, 0.0, 0.02, 0.001, 0.0, 0.0, 0.0]),
        "truncation": truncation,
        "indices": np.arange(35) % 7,
    }
    uniforms = rng.random((35, 2), np.float32).astype(np.float64)
    ours = masked_sample(logits, _words(allowed), uniforms, **arguments, backend="triton")
    oracle = masked_sample(
        logits.float().numpy(), np.stack([pack_mask(a) for a in allowed]), uniforms, **arguments
    )
    dead = oracle.status.reshape(5, 7) != OK
    assert dead[:, 5].all() == (truncation == "target")
    assert not np.delete(dead, 5, axis=1)[:, 1:].any()
    _agree(ours, oracle)


def test_a_row_is_the_same_in_any_batch_and_place() -> None:
    rng = np.random.default_rng(9)
    logits = torch.tensor(rng.normal(size=(5, 2500)), dtype=torch.float32)
    allowed = rng.random((5, 2500)) < 0.5
    k, p = rng.permutation([0, 0, 1, 20, 300]), rng.choice([0.5, 0.9, 0.99], 5)

    def cut(rows: Any) -> Truncated:
        filters = Filters(torch.tensor(k[rows]), torch.tensor(p[rows]), 0.01, "target")
        return _truncate(logits[rows], allowed[rows], 0.8, filters)

    whole = cut(slice(None))
    order = rng.permutation(5)
    moved, alone = cut(order), cut([3])
    for all_of_it, same, one in zip(astuple(whole), astuple(moved), astuple(alone), strict=True):
        assert torch.equal(all_of_it[order], same)
        assert torch.equal(all_of_it[3:4], one)


def test_one_number_is_as_good_as_one_a_row() -> None:
    logits, allowed = _random_case(30, 3000, torch.bfloat16)
    alone = _truncate(logits, allowed, 1.0, Filters(40, 0.8, 0.1, "target"))
    given_each = Filters([40, 40], torch.tensor([0.8, 0.8]).double(), np.full(2, 0.1), "target")
    of_rows = _truncate(logits, allowed, np.ones(2), given_each)
    assert all(torch.equal(a, b) for a, b in zip(astuple(alone), astuple(of_rows), strict=True))


class _InDisorder:
    """Launches a kernel, then mixes the candidates of each row, as blocks that race would."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            self.kernel[grid](*arguments, **options)
            plan, ids = arguments[-3:-1]
            for count, row in zip(plan[1].tolist(), ids, strict=True):
                row[:count] = row[torch.from_numpy(np.random.default_rng(1).permutation(count))]

        return launch


def test_the_order_of_the_candidates_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(12)
    logits = torch.tensor(np.round(rng.normal(size=(3, 3000)) * 8) / 8, dtype=torch.float32)
    filters = Filters([0, 700, 30], np.array([0.9, 0.8, 1.0]), 0.0, "target")
    before = _truncate(logits, None, 1.0, filters)
    monkeypatch.setattr(truncation, "_candidates", _InDisorder(_candidates))
    after = _truncate(logits, None, 1.0, filters)
    assert all(torch.equal(a, b) for a, b in zip(astuple(before), astuple(after), strict=True))
    assert before.tie[0] != ALL_TIES


@pytest.mark.parametrize(
    "options", [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.5}, {"top_k": 2, "top_p": 0.9}], ids=str
)
def test_blocks_below_the_bound_are_not_read(options: dict[str, Any]) -> None:
    """What is written into them after their masses were summed changes nothing."""
    logits = torch.full((1, 4 * BLOCK), -20.0)
    logits[0, [5, BLOCK + 5, 2 * BLOCK + 5, 3 * BLOCK]] = torch.tensor([9.0, 9.5, 3.0, -8.0])
    t = as_temperature(1.0, logits)
    partials = block_stats(logits, None, t)
    filters = Filters(**options, truncation="target")
    before = truncate(logits, None, partials, t, filters)
    logits[0, 3 * BLOCK :] = 50.0
    after = truncate(logits, None, partials, t, filters)
    assert all(torch.equal(a, b) for a, b in zip(astuple(before), astuple(after), strict=True))
    assert _kept(before, logits)[0, : 3 * BLOCK].nonzero()[0].tolist() == [5, BLOCK + 5]


def test_min_p_alone_searches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncation, "_candidates", None)
    monkeypatch.setattr(truncation, "_search", None)
    law: Any
    logits, allowed = _random_case(31, 3000, torch.float16)
    for law in ("target", "after_mask"):
        cut = _truncate(logits, allowed, 0.7, Filters(min_p=0.2, truncation=law))
        x = logits.float().numpy()
        x = np.where(allowed, x, np.float32(-np.inf)) if law == "after_mask" else x
        expected = [truncated_set(row, inverse_temperature=1 / 0.7, min_p=0.2) for row in x]
        assert (_kept(cut, torch.tensor(x)) == np.stack(expected)).all()


def test_rows_that_have_no_law() -> None:
    """NaN and +inf stay seen, also where the filters look at the allowed alone; so do filters in a
    tensor that mean nothing. An empty row is empty, and so is a batch of none.
    """
    logits = torch.zeros((6, 40))
    logits[0, 3], logits[1, 3] = np.nan, np.inf
    logits[2] = -np.inf
    allowed = np.ones((6, 40), np.bool_)
    allowed[0, 3] = False
    uniforms = np.full((6, 2), 0.5)
    law: Any
    for law in ("target", "after_mask"):
        sample = masked_sample(
            logits,
            _words(allowed),
            uniforms,
            top_k=2,
            top_p=0.5,
            truncation=law,
            backend="triton",
        )
        assert sample.status.tolist() == [NOT_FINITE, NOT_FINITE, 1, OK, OK, OK]
        assert sample.token[3:].tolist() == [10, 10, 10]  # 20 of 40 equals stay
    device_side = Filters()  # as a device's tensors, which the host does not read
    for name, values in (("top_k", [-1, 1]), ("top_p", [0.0, 1.5]), ("min_p", [1.0, np.nan])):
        object.__setattr__(device_side, name, torch.tensor(values))
        cut = _truncate(logits[3:5], None, 1.0, device_side)
        assert cut.partials[0, 1].isnan().all()
        object.__setattr__(device_side, name, {"top_k": 0, "top_p": 1.0, "min_p": 0.0}[name])
    nothing = _truncate(torch.zeros((0, 40)), None, 1.0, Filters(2, truncation="target"))
    assert nothing.threshold.shape == (0,)


def test_known_mistakes_are_seen() -> None:
    """Negative controls: rows on which top-p that is not renormalised after top-k, ties kept from
    the end, and min-p relative to the allowed maximum each keep another set.
    """
    logits = torch.tensor([[5.0, 3.0, 3.0, 3.0, 2.0, 1.0, 0.5]])
    row = logits[0].numpy()
    allowed = np.array([[False, True, True, True, True, True, True]])

    def kept(truncation: Any = "target", **options: Any) -> list[int]:
        cut = _truncate(logits, allowed, 1.0, Filters(**options, truncation=truncation))
        return _kept(cut, logits)[0].nonzero()[0].tolist()  # type: ignore[no-any-return]

    p = np.exp(row - 5.0)
    of_kept, of_row = p[:4] / p[:4].sum(), p / p.sum()
    # The share at which the third tie is not needed, but is where the mass below top-k counts.
    share = float(np.mean([of_kept[:3].sum(), of_row[:3].sum()]))
    assert kept(top_k=2, top_p=share) == [0, 1, 2]
    assert int((np.cumsum(of_row) < share).sum()) + 1 == 4
    assert kept(top_p=float(of_row[:2].sum()) - 1e-3) == [0, 1]  # not [0, 3]
    assert kept(min_p=0.1) == [0, 1, 2, 3]
    assert kept("after_mask", min_p=0.1) == [0, 1, 2, 3, 4, 5]
