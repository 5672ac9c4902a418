"""Fused laws against enumeration: mixtures, products, maps, weights by model and by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.fusion import Fused, Operator, fuse
from midstream.kernels.masked_sampling import NOT_FINITE, NOTHING_ALLOWED, OK

OPERATORS: list[Operator] = ["mixture", "product"]


def _log_law(logits: np.ndarray, temperature: float) -> list[Any]:
    """80-bit log softmax; -inf everywhere for a row without mass."""
    x = logits.astype(np.longdouble) / np.longdouble(temperature)
    if x.max() == -np.inf:
        return list(x)
    x -= x.max()
    return list(x - np.log(np.exp(x).sum()))


def _enumerate(
    rows: list[np.ndarray],  # K of [V_k]
    weights: np.ndarray,  # [K, V], of each model and token
    operator: Operator,
    maps: list[np.ndarray],
    temperatures: np.ndarray,  # [K]
) -> tuple[np.ndarray, float, np.ndarray]:
    """log p, the log of its sum before, and the log mass mapped: a loop over tokens and models."""
    laws = [_log_law(x, t) for x, t in zip(rows, temperatures, strict=True)]
    log_mapped, log_values = [[] for _ in rows], []
    for v in range(rows[0].size):
        total, terms = np.longdouble(0.0), [np.longdouble(-np.inf)]
        for k, law in enumerate(laws):
            twin = int(maps[k][v]) if v < len(maps[k]) else -1
            log_p = law[twin] if 0 <= twin < len(law) else np.longdouble(-np.inf)
            log_mapped[k].append(log_p)
            weight = np.longdouble(weights[k, v])
            if weight > 0:
                terms.append(np.log(weight) + log_p)
                total += weight * log_p
        log_values.append(_log_sum(terms) if operator == "mixture" else total)
    normaliser = _log_sum(log_values)
    with np.errstate(invalid="ignore"):
        log_p = np.array(log_values) - (normaliser if normaliser > -np.inf else 0)
    return log_p, float(normaliser), np.array([float(_log_sum(x)) for x in log_mapped])


def _log_sum(values: list[Any]) -> Any:
    top = max(values)
    return top if top == -np.inf else top + np.log(sum(np.exp(value - top) for value in values))


def _close(ours: Any, expected: Any, relative: float, absolute: float) -> bool:
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    dead = np.isneginf(expected)
    bound = absolute + relative * np.abs(expected[~dead])
    return bool(
        (np.isneginf(ours) == dead).all() and (np.abs(ours[~dead] - expected[~dead]) <= bound).all()
    )


@st.composite
def _problems(draw: st.DrawFn) -> dict[str, Any]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    models, rows, size = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    sizes = [size, *(draw(st.integers(1, 50)) for _ in range(models - 1))]
    logits = [(rng.normal(size=(rows, n)) * draw(st.floats(0, 20))) for n in sizes]
    for x in logits:
        x[rng.random(x.shape) < 0.15] = -np.inf
    maps: list[Any] = [None] * models
    for k in range(1, models):
        if draw(st.booleans()):
            maps[k] = rng.integers(-1, sizes[k], size).astype(np.int32)
    weights = rng.random((rows, models)) * (rng.random((rows, models)) < 0.9)
    filters: list[Any] = [None] * models
    for k in range(models):
        shape = draw(st.sampled_from([None, (size,), (rows, size)]))
        if shape is not None:
            filters[k] = rng.random(shape) * (rng.random(shape) < 0.8)
    return {
        "rows": [x.astype(np.float32) for x in logits],
        "weights": weights,
        "token_weights": filters,
        "index_maps": maps,
        "temperature": rng.uniform(0.05, 2.0, (rows, models)),
    }


@pytest.mark.parametrize("operator", OPERATORS)
@given(problem=_problems())
@settings(max_examples=100, deadline=None)
def test_against_enumeration(operator: Operator, problem: dict[str, Any]) -> None:
    fused = fuse(operator=operator, **problem)
    rows, maps = problem["rows"], problem["index_maps"]
    batch, size = rows[0].shape
    maps = [np.arange(size) if x is None else x for x in maps]
    for b in range(batch):
        effective = np.ones((len(rows), size)) * problem["weights"][b][:, None]
        for k, each in enumerate(problem["token_weights"]):
            if each is not None:
                effective[k] *= each if each.ndim == 1 else each[b]
        log_p, normaliser, mapped = _enumerate(
            [x[b] for x in rows], effective, operator, maps, problem["temperature"][b]
        )
        assert _close(fused.log_p[b], log_p, 1e-7, 1e-11)  # the rounding of float32
        assert _close(fused.log_normaliser[b], normaliser, 1e-13, 1e-11)
        assert _close(fused.log_mapped[b], mapped, 1e-13, 1e-11)
        assert fused.status[b] == (NOTHING_ALLOWED if normaliser == -np.inf else OK)


def _rows(models: int, size: int, seed: int = 0, rows: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(rows, size)) * 3).astype(np.float32) for _ in range(models)]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("models", [1, 3])
def test_like_members_fuse_to_the_member(operator: Operator, models: int) -> None:
    """More tokens than are gone over at once, and weights that sum to 1."""
    (row,) = _rows(1, 20_000)
    fused = fuse([row] * models, weights=np.full(models, 1 / models), operator=operator)
    expected = row.astype(np.float64) - np.logaddexp.reduce(row.astype(np.float64), axis=1)[:, None]
    np.testing.assert_allclose(fused.log_p, expected, atol=3e-6)
    np.testing.assert_allclose(fused.log_normaliser, 0, atol=1e-12)
    np.testing.assert_allclose(fused.log_mapped, 0, atol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_order_of_members_says_nothing(operator: Operator) -> None:
    rows, weights = _rows(3, 500), np.array([0.5, 0.2, 0.3])
    fused = fuse(rows, weights=weights, operator=operator)
    turned = fuse(rows[::-1], weights=weights[::-1], operator=operator)
    np.testing.assert_allclose(fused.log_p, turned.log_p, atol=1e-5)
    np.testing.assert_allclose(fused.log_normaliser, turned.log_normaliser, atol=1e-12)


def test_three_tokens_by_hand() -> None:
    main, other = np.array([[0.5, 0.3, 0.2]]), np.array([[0.1, 0.6, 0.3]])
    maps = [None, np.array([1, 0, -1], np.int32)]  # main's token 2 and the other's 2 have no twin
    given: dict[str, Any] = {"weights": [0.5, 0.5], "index_maps": maps}
    mixture = fuse([np.log(main), np.log(other)], **given)
    kept = np.array([0.5 * 0.5 + 0.5 * 0.6, 0.5 * 0.3 + 0.5 * 0.1, 0.5 * 0.2])
    np.testing.assert_allclose(np.exp(mixture.log_p[0]), kept / 0.85, rtol=1e-6)
    assert np.exp(mixture.log_normaliser[0]) == pytest.approx(0.85)
    assert np.exp(mixture.log_mapped[0]).tolist() == pytest.approx([1.0, 0.7])
    product = fuse([np.log(main), np.log(other)], operator="product", **given)
    kept = np.array([np.sqrt(0.5 * 0.6), np.sqrt(0.3 * 0.1), 0.0])
    np.testing.assert_allclose(np.exp(product.log_p[0]), kept / kept.sum(), rtol=1e-6)
    assert np.exp(product.log_normaliser[0]) == pytest.approx(kept.sum())


def test_several_tokens_may_name_one() -> None:
    """Each gets the whole mass; a token weight shares it out."""
    main, other = np.zeros((1, 4)), np.log(np.array([[0.25, 0.75]]))
    claims = np.array([0, 1, 1, 1], np.int32)
    given: dict[str, Any] = {"weights": [0.0, 1.0], "index_maps": [None, claims]}
    whole = fuse([main, other], **given)
    assert np.exp(whole.log_mapped[0, 1]) == pytest.approx(0.25 + 3 * 0.75)
    shared = fuse([main, other], token_weights=[None, 1 / np.bincount(claims)[claims]], **given)
    np.testing.assert_allclose(np.exp(shared.log_p[0]), [0.25] * 4, rtol=1e-6)
    assert shared.log_normaliser[0] == pytest.approx(0.0, abs=1e-12)


def test_zeros_veto_in_a_product_alone() -> None:
    main = np.array([[0.0, 0.0, -np.inf]])
    other = np.array([[-np.inf, 0.0, 0.0]])
    mixture = np.exp(fuse([main, other], weights=[0.5, 0.5]).log_p[0])
    assert mixture.tolist() == pytest.approx([0.25, 0.5, 0.25])
    product = fuse([main, other], weights=[0.5, 0.5], operator="product").log_p[0]
    assert product.tolist() == [-np.inf, 0.0, -np.inf]
    # A weight of 0 takes a say away, for the whole row or for a token.
    silent = fuse([main, other], weights=[1.0, 0.0], operator="product").log_p[0]
    assert np.exp(silent).tolist() == pytest.approx([0.5, 0.5, 0.0])
    some = [None, np.array([0.0, 1.0, 1.0])]
    partly = fuse([main, other], weights=[1, 1], operator="product", token_weights=some).log_p[0]
    assert np.exp(partly).tolist() == pytest.approx([2 / 3, 1 / 3, 0.0])


def test_dead_and_broken_rows_are_values() -> None:
    main, other = _rows(2, 30, rows=6)
    main[0, 3], main[1, 3], other[2, 29] = np.nan, np.inf, np.nan
    main[3], main[5], other[4:] = -np.inf, -np.inf, -np.inf
    mixture = fuse([main, other], weights=[0.5, 0.5])
    broken, nothing = NOT_FINITE, NOTHING_ALLOWED
    assert mixture.status.tolist() == [broken, broken, broken, OK, OK, nothing]
    for field in (mixture.log_p, mixture.log_normaliser, mixture.log_mapped):
        assert np.isnan(field[:3]).all()
    assert np.exp(mixture.log_normaliser[3:5]).tolist() == pytest.approx([0.5, 0.5])
    assert np.exp(mixture.log_p[3:5].astype(np.float64)).sum(1).tolist() == pytest.approx([1, 1])
    assert np.isneginf(mixture.log_p[5]).all()
    assert np.isneginf(mixture.log_mapped[5]).all()
    product = fuse([main, other], weights=[0.5, 0.5], operator="product")
    assert product.status.tolist() == [broken, broken, broken, nothing, nothing, nothing]
    assert np.isneginf(product.log_normaliser[3:]).all()


def _with_one_maximum(rows: list[np.ndarray], temperature: float, operator: Operator) -> np.ndarray:
    """The known mistake: every model's masses relative to the largest logit of all of them."""
    top = max(row.max() for row in rows)
    masses = [np.exp((row.astype(np.float64) - top) / temperature) for row in rows]
    laws = [mass / mass.sum() for mass in masses]
    value = sum(laws) / 2 if operator == "mixture" else np.sqrt(laws[0] * laws[1])
    return np.asarray(np.log(value / value.sum()))


@pytest.mark.parametrize("operator", OPERATORS)
def test_low_temperatures_and_shifted_models(operator: Operator) -> None:
    """One model's logits lie 40 below the other's; at T = 0.05 that is e^-800."""
    rng = np.random.default_rng(8)
    rows = [rng.normal(size=50).astype(np.float32), rng.normal(size=50).astype(np.float32) - 40]
    rows[0][3] += 20
    rows[1][4] += 20
    maps, weights = [np.arange(50)] * 2, np.full((2, 50), 0.5)
    expected, _, _ = _enumerate(rows, weights, operator, maps, np.full(2, 0.05))
    ours = fuse([row[None] for row in rows], weights=0.5, operator=operator, temperature=0.05)
    assert _close(ours.log_p[0], expected, 1e-7, 1e-9)
    with np.errstate(all="ignore"):
        shared = _with_one_maximum(rows, 0.05, operator)
    assert not _close(np.nan_to_num(shared, nan=-np.inf), expected, 1e-3, 1e-3)


def test_vocabularies_of_padded_rows() -> None:
    """Without a map ids are the same as far as both rows go."""
    (main,), (other,) = _rows(1, 20, 1), _rows(1, 24, 2)
    fused = fuse([main, other], weights=[0.5, 0.5])
    law = np.exp(other - np.logaddexp.reduce(other.astype(np.float64), axis=1)[:, None])
    np.testing.assert_allclose(np.exp(fused.log_mapped[:, 1]), law[:, :20].sum(axis=1))
    shorter = fuse([other, main], weights=[0.5, 0.5], operator="product")
    assert np.isneginf(shorter.log_p[:, 20:]).all()
    assert np.isfinite(shorter.log_p[:, :20]).all()


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_row_is_the_same_in_any_batch_and_place(rows: int) -> None:
    main, other = _rows(2, 900, 4, rows)
    rng = np.random.default_rng(4)
    weights, heat = rng.random((rows, 2)), rng.uniform(0.1, 2, (rows, 2))
    each = rng.random((rows, 900))
    order = rng.permutation(rows)
    results = []
    for take in (np.arange(rows), order, np.array([rows - 1])):
        some: list[Any] = [None, each[take]]
        of_rows = [main[take], other[take]]
        fused = fuse(of_rows, weights=weights[take], token_weights=some, temperature=heat[take])
        results.append(fused)
    for name in Fused.__slots__:
        whole, moved, alone = (getattr(result, name) for result in results)
        assert (moved == whole[order]).all()
        assert (alone[0] == whole[-1]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_give_tensors(dtype: torch.dtype) -> None:
    tensors = [torch.from_numpy(x).to(dtype) for x in _rows(2, 60)]
    plain = [tensor.float().numpy() for tensor in tensors]
    index = np.random.default_rng(0).permutation(60).astype(np.int32)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    ours = fuse(tensors, weights=weights, index_maps=[None, torch.from_numpy(index)])
    expected = fuse(plain, weights=[0.4, 0.6], index_maps=[None, index])
    for name in Fused.__slots__:
        assert isinstance(getattr(ours, name), torch.Tensor)
        assert (getattr(ours, name).numpy() == getattr(expected, name)).all()
    assert ours.log_p.dtype == torch.float32


def test_no_rows() -> None:
    assert fuse([np.zeros((0, 4))], weights=[1.0]).log_p.shape == (0, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": []}, "rows: got no models"),
        ({"rows": [np.zeros(4)]}, r"rows\[0\]: got float64 \[4\]"),
        ({"rows": [np.zeros((1, 4)), np.zeros((2, 4))]}, r"rows\[1\]: got float64 \[2, 4\]"),
        ({"rows": [np.zeros((1, 4), int)]}, r"rows\[0\]: got int64"),
        ({"weights": [1.0, 1.0]}, r"weights: got \[2\]; accepted: a number, \[1\] or \[1, 1\]"),
        ({"weights": [-1.0]}, r"weights: got \[-1.0\]; accepted: finite numbers, at least 0"),
        ({"weights": [np.nan]}, "weights: got"),
        ({"temperature": 0.0}, "temperature: got 0.0; accepted: finite numbers, from 1e-6 on"),
        ({"operator": "mean"}, "operator: got 'mean'; accepted: mixture, product"),
        ({"index_maps": [None, None]}, "index_maps: got 2; accepted: 1"),
        ({"index_maps": [np.zeros(3, int)]}, r"index_maps\[0\]: got int64 \[3\]"),
        ({"index_maps": [np.zeros(4)]}, r"index_maps\[0\]: got float64"),
        ({"token_weights": [np.zeros(3)]}, r"token_weights\[0\]: got float64 \[3\]"),
        ({"token_weights": [-np.ones(4)]}, r"token_weights\[0\]: got .* at least 0"),
    ],
)
def test_wrong_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"rows": [np.zeros((1, 4))], "weights": [1.0], **changed}
    with pytest.raises(ValueError, match=message):
        fuse(**given)
