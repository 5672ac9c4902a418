"""Batches of masked draws: laws, weights, batch invariance, dead rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import chi2

from midstream.kernels import masked_sampling
from midstream.kernels.bitmask import apply_bitmask, mask_of_tokens, pack_mask, unpack_mask
from midstream.kernels.masked_sampling import draw_without_replacement, masked_sample

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
    assert (sample.status == masked_sampling.OK).all()


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_row_is_the_same_in_any_batch_and_place(rows: int) -> None:
    logits, mask, uniforms = _batch(rows, 4999)
    whole = masked_sample(logits, mask, uniforms)
    order = np.random.default_rng(5).permutation(rows)
    moved = masked_sample(logits[order], mask[order], uniforms[order])
    for name in ("token", "log_p", "log_z_allowed", "log_z_all", "entropy", "status"):
        assert (getattr(moved, name) == getattr(whole, name)[order]).all()
    alone = masked_sample(logits[-1:], mask[-1:], uniforms[-1:])
    assert alone.log_z_allowed[0] == whole.log_z_allowed[-1]
    assert alone.token[0] == whole.token[-1]


def test_dead_rows_are_values() -> None:
    logits, mask, uniforms = _batch(5, 100)
    mask[0] = 0
    logits[1, 50] = np.nan
    logits[2, 50] = np.inf
    logits[3] = -np.inf
    sample = masked_sample(logits, mask, uniforms)
    nothing, broken = masked_sampling.NOTHING_ALLOWED, masked_sampling.NOT_FINITE
    assert sample.status.tolist() == [nothing, broken, broken, nothing, masked_sampling.OK]
    assert sample.token[:4].tolist() == [-1, -1, -1, -1]
    assert sample.log_z_allowed[0] == -np.inf


def test_empty_batch() -> None:
    sample = masked_sample(np.zeros((0, 10), np.float32), None, np.zeros((0, 2)))
    assert sample.token.shape == (0,)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_temperatures_that_mean_nothing(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        masked_sample(np.zeros((1, 4)), None, np.zeros((1, 2)), temperature=temperature)


def test_wrong_arrays_are_named() -> None:
    with pytest.raises(ValueError, match="logits: got float16"):
        masked_sample(np.zeros((1, 4), np.float16), None, np.zeros((1, 2)))
    with pytest.raises(ValueError, match="mask: got int32"):
        masked_sample(np.zeros((1, 4)), np.zeros((1, 1), np.int32), np.zeros((1, 2)))


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


def test_draws_go_on_from_what_was_rejected() -> None:
    logits, mask, _ = _batch(3, 3000)
    uniforms = np.random.default_rng(13).random((3, 9, 2))
    whole = draw_without_replacement(logits, mask, uniforms)
    first = draw_without_replacement(logits, mask, uniforms[:, :4])
    rest = draw_without_replacement(logits, mask, uniforms[:, 4:], rejected=first.token.tolist())
    assert (np.concatenate([first.token, rest.token], axis=1) == whole.token).all()


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
