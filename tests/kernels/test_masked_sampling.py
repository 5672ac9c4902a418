"""Batches of masked draws: laws, weights, batch invariance, dead rows."""

from __future__ import annotations

import itertools
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import chi2

from midstream.kernels.bitmask import apply_bitmask, mask_of_tokens, pack_mask, unpack_mask
from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import (
    NOT_FINITE,
    NOTHING_ALLOWED,
    OK,
    draw_without_replacement,
    masked_sample,
)
from midstream.middleware.law import Law

FALSE_ALARM = 1e-4


def _batch(rows: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, size)) * 3).astype(np.float32)
    allowed = rng.random((rows, size)) < 0.2
    allowed[:, 0] = True
    mask = np.stack([pack_mask(a) for a in allowed])
    return logits, mask, rng.random((rows, 2))


def test_values_against_float64() -> None:
    logits, mask, uniforms = _batch(9, 5003)
    temperature = np.linspace(0.05, 2, 9)
    sample = masked_sample(logits, mask, uniforms, temperature=temperature)
    for i in range(9):
        x = logits[i].astype(np.float64) / temperature[i]
        allowed = unpack_mask(mask[i], 5003)
        assert allowed[sample.token[i]]
        assert sample.log_z_all[i] == pytest.approx(logsumexp(x), abs=2e-6)
        assert sample.log_z_allowed[i] == pytest.approx(logsumexp(x[allowed]), abs=2e-6)
        assert sample.log_p[i] == pytest.approx(x[sample.token[i]] - logsumexp(x), abs=2e-6)
        p = softmax(x)
        assert sample.entropy[i] == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum(), abs=1e-5)
    assert (sample.status == OK).all()


def test_log_weights_keep_their_digits() -> None:
    """Within 2e-6 at any temperature, of allowed sets that lie far below the top."""
    rng = np.random.default_rng(3)
    logits = rng.uniform(-30, 30, (5, 20_000)).astype(np.float32)
    temperature = np.array([0.05, 0.1, 0.3, 1.0, 2.0])
    top = 30 - np.minimum(90 * temperature, 45)[:, None]
    allowed = (logits < top) & (rng.random(logits.shape) < 0.01)
    mask = np.stack([pack_mask(each) for each in allowed])
    sample = masked_sample(logits, mask, rng.random((5, 2)), temperature=temperature)
    x = logits.astype(np.float64) / temperature[:, None]
    log_z_all = logsumexp(x, axis=1)
    log_weight = logsumexp(np.where(allowed, x, -np.inf), axis=1) - log_z_all
    assert (log_weight[:3] < -87).all()
    np.testing.assert_allclose(sample.log_weight, log_weight, rtol=0, atol=2e-6)
    log_p = x[np.arange(5), sample.token] - log_z_all
    np.testing.assert_allclose(sample.log_p, log_p, rtol=0, atol=2e-6)


@pytest.mark.parametrize("truncation", [None, "target", "after_mask"])
@pytest.mark.parametrize("rows", [1, 7, 64, 256])
def test_a_row_is_the_same_in_any_batch_and_place(rows: int, truncation: Any) -> None:
    size = 4999 if truncation is None else 301
    logits, mask, uniforms = _batch(rows, size)
    options: dict[str, Any] = (
        {"truncation": truncation}
        if truncation is None
        else {"top_k": 40, "top_p": 0.9, "truncation": truncation}
    )
    whole = masked_sample(logits, mask, uniforms, **options)
    order = np.random.default_rng(5).permutation(rows)
    moved = masked_sample(logits[order], mask[order], uniforms[order], **options)
    alone = masked_sample(logits[-1:], mask[-1:], uniforms[-1:], **options)
    for mine, other, lone in zip(astuple(whole), astuple(moved), astuple(alone), strict=True):
        assert (other == mine[order]).all()
        assert lone[0] == mine[-1]


def test_dead_rows_are_values() -> None:
    logits, mask, uniforms = _batch(5, 100)
    mask[0] = 0
    logits[1, 50] = np.nan
    logits[2, 50] = np.inf
    logits[3] = -np.inf
    sample = masked_sample(logits, mask, uniforms)
    nothing, broken = NOTHING_ALLOWED, NOT_FINITE
    assert sample.status.tolist() == [nothing, broken, broken, nothing, OK]
    assert sample.token[:4].tolist() == [-1, -1, -1, -1]
    assert np.isneginf(sample.log_weight[:4]).all() and np.isneginf(sample.log_p[:4]).all()
    assert sample.log_z_allowed[0] == -np.inf


def test_empty_batch() -> None:
    sample = masked_sample(np.zeros((0, 10), np.float32), None, np.zeros((0, 2)))
    assert sample.token.shape == (0,)
    shared = masked_sample(
        np.zeros((2, 9), np.float32), None, np.zeros((0, 2)), indices=np.zeros(0, np.int64)
    )
    assert shared.log_weight.shape == (0,)
    nothing = masked_sample(np.zeros((1, 0), np.float32), None, np.zeros((1, 2)))
    assert nothing.status.tolist() == [NOTHING_ALLOWED]


def _exact(
    logits: np.ndarray, allowed: np.ndarray, temperature: float, token: int
) -> tuple[float, float, float, float]:
    """log_p, log_weight, log_z_allowed and log_z_all of one row in float64."""
    # Hosts mask with the least finite number, too.
    x = np.where(logits > -1e30, logits, -np.inf) / (temperature or 1.0)
    log_z_all, log_z_allowed = logsumexp(x), logsumexp(np.where(allowed, x, -np.inf))
    log_p = x[token] - log_z_all if token >= 0 else -np.inf
    return log_p, log_z_allowed - log_z_all if token >= 0 else -np.inf, log_z_allowed, log_z_all


@given(
    st.integers(1, 9000),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.05, 0.7, 2.0]),
    st.sampled_from(["bfloat16", "float16", "float32", "float64"]),
    st.sampled_from(["some", "one", "none", "short", "long", "all"]),
    st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
@example(1, 1, 0, 1.0, "float32", "all", 0)
@example(2048, 2, 1, 0.05, "bfloat16", "some", 0)
@example(8193, 2, 2, 0.0, "float16", "short", 3)
def test_shapes(
    size: int, rows: int, seed: int, temperature: float, dtype: str, kind: str, padding: int
) -> None:
    """Sizes and strides that are a multiple of nothing, masks of every length, rows with -inf,
    +inf, NaN and the least finite number, as tensors, against float64.
    """
    rng = np.random.default_rng(seed)
    buffer = torch.tensor(rng.normal(size=(rows, size + padding)) * 8, dtype=getattr(torch, dtype))
    logits = buffer[:, padding // 2 : padding // 2 + size]
    special = [-np.inf, np.inf, np.nan, float(torch.finfo(logits.dtype).min)]
    for row in logits:
        if rng.random() < 0.3:
            at = rng.random(size) < rng.choice([0.01, 1.0])
            row[torch.tensor(at)] = float(rng.choice(special))
    allowed = rng.random((rows, size)) < 0.4
    if kind == "one":
        allowed[:] = np.arange(size) == rng.integers(size)
    elif kind == "none":
        allowed[:] = False
    mask = np.stack([pack_mask(each) for each in allowed])
    if kind == "short":
        mask = mask[:, : rng.integers(0, mask.shape[1] + 1)]
        allowed[:, 32 * mask.shape[1] :] = False
    elif kind == "long":
        mask = np.pad(mask, ((0, 0), (0, 3)), constant_values=np.uint32(0xFFFFFFFF))
    elif kind == "all":
        allowed[:] = True
    words = None if kind == "all" else torch.tensor(np.ascontiguousarray(mask).view(np.int32))
    sample = masked_sample(logits, words, rng.random((rows, 2)), temperature=temperature)
    for i, row in enumerate(logits.double().numpy()):
        if np.isnan(row).any() or np.isposinf(row).any():
            assert sample.status[i] == NOT_FINITE and sample.token[i] == -1
            continue
        token = int(sample.token[i])
        exact = _exact(row, allowed[i], temperature, token)
        found = [float(each[i]) for each in astuple(sample)[1:5]]
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=2e-6)
        assert sample.status[i] == (NOTHING_ALLOWED if exact[2] == -np.inf else OK)
        assert token == -1 if exact[2] == -np.inf else allowed[i, token] and row[token] > -1e30
        if token >= 0 and temperature == 0:
            assert token == np.where(allowed[i], row, -np.inf).argmax()


def test_a_mask_of_no_words_allows_nothing() -> None:
    nothing = np.zeros((2, 0), np.uint32)
    for size in (1, 40, 9000):
        logits = np.zeros((2, size), np.float32)
        sample = masked_sample(logits, nothing, np.zeros((2, 2)))
        assert sample.status.tolist() == [NOTHING_ALLOWED] * 2


def test_tensors_go_in_and_come_out() -> None:
    logits, mask, uniforms = _batch(3, 700)
    ours = masked_sample(torch.tensor(logits), torch.tensor(mask.view(np.int32)), uniforms)
    for mine, other in zip(
        astuple(ours), astuple(masked_sample(logits, mask, uniforms)), strict=True
    ):
        assert isinstance(mine, torch.Tensor) and (mine.numpy() == other).all()


def test_keys_stand_for_their_uniforms() -> None:
    logits, mask, _ = _batch(4, 3000)
    keys = Keys(np.arange(4) << 33, np.arange(4), np.array([5, 5, 6, 6]), 0, first=3)
    drawn = masked_sample(logits, mask, keys)
    given = masked_sample(logits, mask, keys.uniforms(1)[:, 0])
    assert (drawn.token == given.token).all()
    order = draw_without_replacement(logits, mask, keys, count=3).token
    assert (order == draw_without_replacement(logits, mask, keys.uniforms(3)).token).all()


def test_particles_share_the_row_that_they_are_of() -> None:
    logits, mask, _ = _batch(3, 5000)
    index = np.array([2, 0, 0, 2, 2])
    uniforms = np.random.default_rng(1).random((5, 2))
    temperature = np.array([0.5, 1.0, 0.0])
    shared = masked_sample(logits, mask, uniforms, indices=index, temperature=temperature)
    repeated = masked_sample(logits[index], mask[index], uniforms, temperature=temperature[index])
    for mine, other in zip(astuple(shared), astuple(repeated), strict=True):
        assert (mine == other).all()


@pytest.mark.parametrize("truncation", ["target", "after_mask"])
def test_truncation_is_that_of_the_law(truncation: Any) -> None:
    """Rows with filters of their own, one of them greedy, are those of `Law.read`."""
    logits, mask, uniforms = _batch(4, 3000)
    logits[3] = logits[3].round()
    filters = {
        "top_k": np.array([30, 0, 400, 0]),
        "top_p": np.array([1.0, 0.8, 0.95, 0.5]),
        "min_p": np.array([0.0, 0.01, 0.1, 0.0]),
    }
    temperature = np.array([0.7, 1.0, 1.5, 0.0])
    sample = masked_sample(
        logits, mask, uniforms, temperature=temperature, truncation=truncation, **filters
    )
    assert (sample.status == OK).all()
    for i in range(4):
        top_k, top_p, min_p = (each[i].item() for each in filters.values())
        law = Law(temperature[i], top_k, top_p, min_p, truncation)
        row = law.read(logits[i], mask[i])
        assert sample.log_z_all[i] == row.log_z_all
        assert sample.log_z_allowed[i] == row.log_z_allowed
        assert sample.log_weight[i] == row.log_z_allowed - row.log_z_all
        token = int(sample.token[i])
        assert sample.log_p[i] == row.log_p(token)
        if temperature[i] > 0:
            assert token == row.take(uniforms[i : i + 1])[0]
            assert law.survivors(logits[i], mask[i])[token]


def test_truncation_can_leave_nothing_of_what_is_allowed() -> None:
    logits = np.array([[5.0, 0.0, 0.0]], np.float32)
    mask = np.array([[0b110]], np.uint32)
    options: dict[str, Any] = {"top_k": 1}
    dead = masked_sample(logits, mask, np.zeros((1, 2)), truncation="target", **options)
    assert dead.status.tolist() == [NOTHING_ALLOWED] and dead.entropy.tolist() == [0.0]
    alive = masked_sample(logits, mask, np.zeros((1, 2)), truncation="after_mask", **options)
    assert alive.token.tolist() == [1]
    logits[0, 0] = np.nan
    broken = masked_sample(logits, mask, np.zeros((1, 2)), truncation="target", **options)
    assert broken.status.tolist() == [NOT_FINITE]


@pytest.mark.parametrize("temperature", [-1.0, np.nan, np.inf, 1e-9])
def test_temperatures_that_mean_nothing(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        masked_sample(np.zeros((1, 4)), None, np.zeros((1, 2)), temperature=temperature)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("logits", {"logits": np.zeros((1, 4), np.int64)}),
        ("logits", {"logits": np.zeros(4)}),
        ("mask", {"mask": np.zeros((1, 1), np.int32)}),
        ("mask", {"mask": np.zeros((2, 1), np.uint32)}),
        ("noise", {"noise": np.zeros((2, 2))}),
        ("noise", {"noise": np.zeros((1, 3))}),
        ("temperature", {"temperature": np.ones(2)}),
        ("indices", {"indices": np.array([1])}),
        ("indices", {"indices": np.array([0, 0])}),
        ("top_k", {"top_k": 1.5, "truncation": "target"}),
        ("top_p", {"top_p": 0.0, "truncation": "target"}),
        ("min_p", {"min_p": np.array([1.0]), "truncation": "target"}),
        ("truncation", {"top_p": 0.5}),
        ("truncation", {"truncation": "before"}),
        ("backend", {"backend": "torch"}),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any]) -> None:
    right: dict[str, Any] = {"logits": np.zeros((1, 4)), "mask": None, "noise": np.zeros((1, 2))}
    with pytest.raises(ValueError, match=f"^{name}: got"):
        masked_sample(**{**right, **arguments})


def test_weights_by_enumeration() -> None:
    """On a grid of uniforms each token's area times its weight is p(t) allowed(t)."""
    logits = np.random.default_rng(8).normal(size=(1, 6)).astype(np.float32) * 2
    side = 20_000
    uniforms = np.stack([np.full(side, 0.5), (np.arange(side) + 0.5) / side], axis=1)
    index = np.zeros(side, np.int64)
    for bits in range(1, 64):
        mask = np.array([[bits]], np.uint32)
        sample = masked_sample(logits, mask, uniforms, indices=index, temperature=0.7)
        weight = np.exp(sample.log_weight)
        found = np.bincount(sample.token, weight, minlength=6) / side
        p = softmax(logits[0].astype(np.float64) / 0.7) * unpack_mask(mask[0], 6)
        np.testing.assert_allclose(found, p, rtol=0, atol=weight[0] / side)
        assert weight[0] == pytest.approx(p.sum(), rel=1e-6)


def test_draws_follow_the_masked_law() -> None:
    logits, mask, _ = _batch(1, 40)
    n = 20_000
    uniforms = np.random.default_rng(7).random((n, 2))
    tokens = masked_sample(np.repeat(logits, n, axis=0), np.repeat(mask, n, axis=0), uniforms).token
    law = softmax(np.where(unpack_mask(mask[0], 40), logits[0].astype(np.float64), -np.inf))
    expected = law * n
    seen = np.bincount(tokens, minlength=40)
    assert not seen[law == 0].any()
    rare = expected < 8
    cells = [
        *zip(seen[~rare], expected[~rare], strict=True),
        (seen[rare].sum(), expected[rare].sum()),
    ]
    statistic = sum((o - e) ** 2 / e for o, e in cells if e > 0)
    assert statistic < chi2.isf(FALSE_ALARM, len(cells) - 1)


def test_order_without_replacement_follows_the_exact_law() -> None:
    """Successive sampling on four tokens: all 24 orders of the first three, by chi-square."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    n = 6000
    uniforms = np.random.default_rng(11).random((n, 3, 2))
    draws = draw_without_replacement(np.repeat(np.log(p)[None], n, axis=0), None, uniforms)
    seen: dict[tuple[int, ...], int] = {}
    for order in map(tuple, draws.token.tolist()):
        seen[order] = seen.get(order, 0) + 1
    statistic = 0.0
    for order in itertools.permutations(range(4), 3):
        left, share = 1.0, 1.0
        for token in order:
            share *= p[token] / left
            left -= p[token]
        statistic += (seen.get(order, 0) - n * share) ** 2 / (n * share)
    assert statistic < chi2.isf(FALSE_ALARM, 23)
    first = p[draws.token[:, 0]]
    np.testing.assert_allclose(np.exp(draws.log_live[:, 1]), 1 - first, rtol=1e-9)


def test_order_of_six_under_a_mask_after_a_rejection() -> None:
    """Successive sampling from what is left of six tokens: 60 orders of three of five."""
    rng = np.random.default_rng(19)
    logits, n = rng.normal(size=6), 12_000
    mask = np.broadcast_to(np.array([[0b111111]], np.uint32), (n, 1))
    rejected = np.broadcast_to([[-1, 4]], (n, 2))
    draws = draw_without_replacement(
        np.broadcast_to(logits, (n, 6)),
        mask,
        rng.random((n, 3, 2)),
        temperature=0.8,
        rejected=rejected,
    )
    law = softmax(logits / 0.8)
    seen: dict[tuple[int, ...], int] = {}
    for order in map(tuple, draws.token.tolist()):
        seen[order] = seen.get(order, 0) + 1
    statistic = 0.0
    for order in itertools.permutations([0, 1, 2, 3, 5], 3):
        left, share = 1.0 - law[4], 1.0
        for token in order:
            share *= law[token] / left
            left -= law[token]
        statistic += (seen.pop(order, 0) - n * share) ** 2 / (n * share)
    assert not seen
    assert statistic < chi2.isf(FALSE_ALARM, 59)
    np.testing.assert_allclose(np.exp(draws.log_live[:, 0] - draws.log_z_all), 1 - law[4])
    np.testing.assert_allclose(np.exp(draws.log_p), law[draws.token])


def test_draws_go_on_from_what_was_rejected() -> None:
    logits, mask, _ = _batch(3, 3000)
    uniforms = np.random.default_rng(13).random((3, 9, 2))
    whole = draw_without_replacement(logits, mask, uniforms)
    first = draw_without_replacement(logits, mask, uniforms[:, :4])
    rejected = np.pad(first.token, ((0, 0), (2, 1)), constant_values=-1)
    rest = draw_without_replacement(logits, mask, uniforms[:, 4:], rejected=rejected)
    assert (np.concatenate([first.token, rest.token], axis=1) == whole.token).all()


def test_greedy_draws_come_in_order() -> None:
    """T = 0: the largest first, of equals the lower id, without what was rejected."""
    logits = np.array([[1.0, 3.0, 3.0, 2.0, 9.0]], np.float32)
    mask = np.array([[0b01111]], np.uint32)
    draws = draw_without_replacement(
        logits, mask, np.full((1, 4, 2), 0.99), temperature=0.0, rejected=np.array([[2]])
    )
    assert draws.token.tolist() == [[1, 3, 0, -1]]
    assert draws.log_z_all[0] == pytest.approx(logsumexp(logits.astype(np.float64)), abs=1e-6)


def test_wrong_rejections_are_named() -> None:
    logits, noise = np.zeros((1, 4)), np.zeros((1, 1, 2))
    for rejected in (np.array([[4]]), np.array([[-2]]), np.array([0]), np.array([[0.5]])):
        with pytest.raises(ValueError, match=r"^rejected: "):
            draw_without_replacement(logits, None, noise, rejected=rejected)
    with pytest.raises(ValueError, match=r"^count: got None"):
        draw_without_replacement(logits, None, Keys(*np.zeros((3, 1), np.int64), 0))


def test_draws_end_when_nothing_is_left() -> None:
    mask = np.zeros((1, 1), np.uint32)
    mask_of_tokens([2, 5], mask[0])
    draws = draw_without_replacement(np.zeros((1, 8)), mask, np.full((1, 4, 2), 0.5))
    assert sorted(draws.token[0].tolist()) == [-1, -1, 2, 5]
    assert np.isneginf(draws.log_live[0, 2])


def test_bits_go_in_and_out() -> None:
    rng = np.random.default_rng(17)
    for size in (1, 31, 32, 33, 4096, 5001):
        allowed = rng.random(size) < 0.5
        words = pack_mask(allowed, np.full((size + 31) // 32 + 2, 7, np.uint32))
        assert (unpack_mask(words, size) == allowed).all()
        assert not unpack_mask(words, size + 64)[size:].any()
        rebuilt = np.empty_like(words)
        mask_of_tokens(np.flatnonzero(allowed), rebuilt)
        assert (rebuilt == words).all()


def test_apply_bitmask_reaches_beyond_the_mask() -> None:
    logits = np.zeros((1, 70), np.float32)
    apply_bitmask(logits, np.full((1, 2), 0xFFFFFFFF, np.uint32))
    assert np.isneginf(logits[0, 64:]).all()
    assert not logits[0, :64].any()
