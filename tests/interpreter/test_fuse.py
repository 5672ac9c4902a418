"""`fuse` in the interpreter against numpy: to float32's last places, rows bit for bit alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.blocks import BLOCK
from midstream.kernels.fusion import Fused, Operator, fuse

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinities

OPERATORS: list[Operator] = ["mixture", "product"]
FLOAT32 = 5e-7
"""Of log_p, relative to 1 + |log_p|: four units of the last place."""

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _close(ours: torch.Tensor, expected: torch.Tensor, relative: float, absolute: float) -> bool:
    a, b = ours.double(), expected.double()
    known = b.isfinite()
    same = torch.equal(a.isneginf(), b.isneginf()) and torch.equal(a.isnan(), b.isnan())
    bound = absolute + relative * b[known].abs()
    return same and bool(((a[known] - b[known]).abs() <= bound).all())


def _assert_as_in_numpy(**given: Any) -> Fused:
    ours, expected = fuse(backend="triton", **given), fuse(backend="numpy", **given)
    assert _close(ours.log_p, expected.log_p, FLOAT32, FLOAT32)
    assert _close(ours.log_normaliser, expected.log_normaliser, 1e-12, 2e-6)
    assert _close(ours.log_mapped, expected.log_mapped, 1e-12, 2e-6)
    assert torch.equal(ours.status, expected.status)
    return ours


@st.composite
def _problems(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    models, rows = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    size = draw(st.one_of(st.integers(1, 60), st.integers(BLOCK - 1, BLOCK + 40)))
    sizes = [size, *(draw(st.sampled_from([size, 1, 7, size + 5])) for _ in range(models - 1))]
    logits = []
    for n in sizes:
        x = rng.normal(size=(rows, n)) * draw(st.floats(0, 15))
        x[rng.random(x.shape) < 0.15] = -np.inf
        logits.append(torch.from_numpy(x).to(draw(st.sampled_from(DTYPES))))
    maps: list[Any] = [None] * models
    filters: list[Any] = [None] * models
    for k in range(models):
        if k and draw(st.booleans()):
            maps[k] = rng.integers(-1, sizes[k] + 1, size).astype(np.int32)
        shape = draw(st.sampled_from([None, (size,), (rows, size)]))
        if shape is not None:
            filters[k] = (rng.random(shape) * (rng.random(shape) < 0.8)).astype(np.float32)
    return {
        "rows": logits,
        "weights": rng.random((rows, models)) * (rng.random((rows, models)) < 0.9),
        "token_weights": filters,
        "index_maps": maps,
        "temperature": draw(st.sampled_from([1.0, 0.05, np.linspace(0.1, 2, models)])),
    }


@pytest.mark.parametrize("operator", OPERATORS)
@given(problem=_problems())
@settings(max_examples=30, deadline=None)
def test_as_in_numpy(operator: Operator, problem: dict[str, Any]) -> None:
    _assert_as_in_numpy(operator=operator, **problem)


def _with_one_maximum(rows: list[torch.Tensor], temperature: float) -> torch.Tensor:
    """The known mistake, in float32: all masses relative to the largest logit of all models."""
    top = max(row.max() for row in rows)
    masses = [((row - top) / temperature).exp() for row in rows]
    return (sum(mass / mass.sum() for mass in masses) / 2).log()


@pytest.mark.parametrize("operator", OPERATORS)
def test_models_that_disagree_at_a_low_temperature(operator: Operator) -> None:
    """Each model's tokens lie e^-800 below the other's, and what both half like wins a product."""
    rng = np.random.default_rng(8)
    rows = [torch.from_numpy(rng.normal(size=(1, 2 * BLOCK))).float() for _ in range(2)]
    rows[0][0, 3] += 40
    rows[1] -= 40
    rows[1][0, BLOCK + 4] += 40
    ours = _assert_as_in_numpy(rows=rows, weights=[0.5, 0.5], operator=operator, temperature=0.05)
    total = np.logaddexp.reduce(ours.log_p[0].double().numpy())
    assert total == pytest.approx(0.0, abs=1e-6)
    shared = _with_one_maximum(rows, 0.05)
    assert not _close(shared, fuse(rows, weights=[0.5, 0.5], temperature=0.05).log_p, 1e-3, 1e-3)


@pytest.mark.parametrize("operator", OPERATORS)
def test_dead_and_broken_rows(operator: Operator) -> None:
    rng = np.random.default_rng(2)
    main, other = (torch.from_numpy(rng.normal(size=(6, 30))).float() for _ in range(2))
    main[0, 3], main[1, 3], other[2, 29] = torch.nan, torch.inf, torch.nan
    main[3], main[5], other[4:] = -torch.inf, torch.finfo(torch.float32).min, -torch.inf
    maps = [None, torch.arange(30, dtype=torch.int32) - 3]  # the broken token is not mapped
    for weights in ([0.5, 0.5], [1.0, 0.0]):
        given: dict[str, Any] = {"weights": weights, "index_maps": maps, "operator": operator}
        ours = _assert_as_in_numpy(rows=[main, other], **given)
        assert ours.status[:3].tolist() == [2, 2, 2]


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_row_is_the_same_in_any_batch_and_place(operator: Operator) -> None:
    rng = np.random.default_rng(4)
    main = torch.from_numpy(rng.normal(size=(5, BLOCK + 9)) * 3).bfloat16()
    other = torch.from_numpy(rng.normal(size=(5, 200)) * 3).float()
    index = rng.integers(-1, 200, BLOCK + 9).astype(np.int32)
    weights, heat = rng.random((5, 2)), rng.uniform(0.1, 2, (5, 2))
    each = rng.random((5, BLOCK + 9)).astype(np.float32)
    results = []
    order = rng.permutation(5)
    for take in (np.arange(5), order, np.array([4])):
        apart = torch.zeros(len(take), BLOCK + 100, dtype=torch.bfloat16)
        apart[:, : BLOCK + 9] = main[take]  # rows further apart
        fused = fuse(
            [apart[:, : BLOCK + 9], other[take]],
            weights=weights[take],
            token_weights=[None, torch.from_numpy(each[take])],
            index_maps=[None, index],
            operator=operator,
            temperature=torch.from_numpy(heat[take]),
            backend="triton",
        )
        results.append(fused)
    for name in Fused.__slots__:
        whole, moved, alone = (getattr(result, name) for result in results)
        assert torch.equal(moved, whole[order])
        assert torch.equal(alone[0], whole[4])


def test_no_rows_and_what_the_kernel_does_not_take() -> None:
    assert fuse([torch.zeros(0, 4)], weights=1.0, backend="triton").log_p.shape == (0, 4)
    with pytest.raises(ValueError, match=r"logits: got torch\.float64"):
        fuse([torch.zeros(1, 4, dtype=torch.float64)], weights=1.0, backend="triton")
