"""Top-k, top-p and min-p keep what transformers' warpers keep, ties included, and draws follow the
two laws that they mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import chi2
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.blocks import NO_MASS
from midstream.kernels.masked_sampling import NOTHING_ALLOWED, masked_sample
from midstream.kernels.truncation import ALL_TIES, Edge, truncated_set, truncation_edge

FALSE_ALARM = 1e-4
NEAR = 1e-6
"""How near a tail may come to the edge of top-p, relative to it, before sums decide by rounding."""

Cut = Callable[..., np.ndarray]


def _warped(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    scores: Any = torch.tensor(logits)[None]
    ids: Any = None
    if top_k:
        scores = TopKLogitsWarper(top_k)(ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(ids, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(ids, scores)
    kept: np.ndarray = torch.isfinite(scores[0]).numpy()
    return kept


def _by_sorting(
    logits: np.ndarray,
    *,
    inverse_temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    renormalised: bool = True,
    lower_id_first: bool = True,
) -> tuple[np.ndarray, float]:
    """The set by one stable sort of the row and float64 sums over it; how near to the edge of top-p
    a tail comes. With two known mistakes on request.
    """
    scaled = logits.astype(np.float64) * inverse_temperature
    kept = logits > NO_MASS
    order = np.flatnonzero(kept)
    if not lower_id_first:
        order = order[::-1]
    order = order[np.argsort(-scaled[order], kind="stable")]
    mass = np.exp(scaled[order] - scaled[order[:1]])
    whole = mass.sum()
    nearest = np.inf
    if 0 < top_k < order.size:
        stay = int((scaled[order] >= scaled[order[top_k - 1]]).sum())
        order, mass = order[:stay], mass[:stay]
    if top_p < 1 and order.size:
        tail = np.cumsum(mass[::-1])[::-1]
        spare = (1 - top_p) * (tail[0] if renormalised else whole)
        nearest = np.abs(tail / spare - 1).min()
        order = order[: max(int((tail > spare).sum()), 1)]
    if min_p > 0 and order.size:
        order = order[scaled[order] >= scaled[order[0]] + np.log(min_p)]
    kept[:] = False
    kept[order] = True
    return kept, float(nearest)


@given(
    st.integers(2, 300),
    st.integers(0, 2**32 - 1),
    st.integers(0, 20),
    st.floats(0.05, 1.0),
    st.floats(0.0, 0.9),
)
@settings(max_examples=150, deadline=None)
def test_the_same_set_as_the_host(
    size: int, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=size) * 3
    ours = truncated_set(logits, top_k=top_k, top_p=top_p, min_p=min_p)
    assert (ours == _warped(logits, top_k, top_p, min_p)).all()


@given(
    st.sampled_from([1, 2, 63, 64, 300, 5000]),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([1e-6, 0.05, 1.0, 100.0]),
    st.sampled_from([0, 1, 2, 50, 64, 4999, 5001]),
    st.sampled_from([1.0, 1e-9, 0.5, 0.9, 0.99, 1 - 1e-7]),
    st.sampled_from([0.0, 0.01, 0.999]),
)
@example(300, 5, np.float32, 1.0, 0, 1e-9, 0.0)
@settings(max_examples=150, deadline=None)
def test_the_same_set_as_by_sorting(
    size: int, seed: int, dtype: type, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Ties, rows of one value, rows with -inf."""
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=size) * rng.choice([0, 0.01, 1, 30])).astype(dtype)
    if seed % 2:
        logits = np.round(logits * 2) / 2
    logits[rng.random(size) < rng.choice([0.0, 0.3])] = -np.inf
    options: dict[str, Any] = {
        "inverse_temperature": 1 / temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    expected, nearest = _by_sorting(logits, **options)
    if nearest < NEAR:
        event("a tail at the edge")
    else:
        assert (truncated_set(logits, **options) == expected).all()


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(
    "options",
    [{"top_k": 50}, {"top_k": 50, "top_p": 0.9}, {"top_p": 0.9}, {"top_p": 0.99, "min_p": 1e-4}],
)
def test_rows_of_a_large_vocabulary(scale: float, options: dict[str, Any]) -> None:
    logits = (np.random.default_rng(3).normal(size=128_256) * scale).astype(np.float32)
    expected, nearest = _by_sorting(logits, **options)
    assert nearest > NEAR
    assert (truncated_set(logits, **options) == expected).all()


def test_ties() -> None:
    logits = np.array([1.0, 3.0, 3.0, 3.0, 0.0])
    assert truncated_set(logits, top_k=2).tolist() == [False, True, True, True, False]
    assert _warped(logits, 2, 1.0, 0.0).tolist() == [False, True, True, True, False]
    # Of equal tokens the lower id stays.
    assert truncated_set(logits, top_p=0.5).tolist() == [False, True, True, False, False]
    # All that are exactly min_p times the largest stay.
    logits = np.array([0.0, 3.0, 3.0 + np.log(0.5), 3.0 + np.log(0.5)])
    assert truncated_set(logits, min_p=0.5).tolist() == [False, True, True, True]


def test_an_edge_is_a_cut_of_the_ordered_row() -> None:
    logits = np.array([1.0, 3.0, 3.0, 3.0, 0.0], np.float32)
    assert truncation_edge(logits, top_k=2) == Edge(3.0, ALL_TIES)
    assert truncation_edge(logits, top_p=0.5) == Edge(3.0, 2)
    # The least float32 number that is not below an edge between two of them.
    edge = truncation_edge(logits, min_p=0.1)
    assert np.nextafter(np.float32(edge.threshold), np.float32(0)) < 3 + np.log(0.1)
    assert edge.threshold >= 3 + np.log(0.1)
    assert truncation_edge(np.full(3, -np.inf), top_k=1) == truncation_edge(logits)


def _disagrees(cut: Cut, logits: np.ndarray, **options: Any) -> bool:
    """Whether a cut keeps another set than sorting says."""
    expected, nearest = _by_sorting(logits, **options)
    assert nearest > NEAR
    return bool((cut(logits, **options) != expected).any())


def test_a_share_of_the_whole_row_is_seen() -> None:
    """Negative control: top-p of the mass before top-k, which then takes away too little."""
    logits = np.random.default_rng(0).normal(size=400)
    options = {"top_k": 20, "top_p": 0.7}
    assert _disagrees(
        lambda *a, **o: _by_sorting(*a, **o, renormalised=False)[0], logits, **options
    )
    assert not _disagrees(truncated_set, logits, **options)


def test_ties_in_another_order_are_seen() -> None:
    """Negative control: of equal tokens the higher id goes first."""
    logits = np.round(np.random.default_rng(0).normal(size=400))
    options = {"top_p": 0.7}
    assert _disagrees(
        lambda *a, **o: _by_sorting(*a, **o, lower_id_first=False)[0], logits, **options
    )
    assert not _disagrees(truncated_set, logits, **options)


def test_temperature_comes_first() -> None:
    logits = np.log([0.5, 0.3, 0.2])
    assert truncated_set(logits, top_p=0.6).sum() == 2
    assert truncated_set(logits, top_p=0.6, inverse_temperature=5.0).sum() == 1


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 0.999}])
def test_the_most_probable_token_always_stays(options: dict[str, Any]) -> None:
    assert truncated_set(np.array([0.0, 2.0, 1.0]), **options).tolist() == [False, True, False]


@pytest.mark.parametrize("nothing", [-np.inf, NO_MASS, np.finfo(np.float32).min])
def test_tokens_of_no_mass_never_stay(nothing: float) -> None:
    logits = np.array([nothing, 0.0, nothing])
    assert truncated_set(logits).tolist() == [False, True, False]
    assert truncated_set(logits, top_k=2, top_p=0.99, min_p=0.1).tolist() == [False, True, False]
    assert not truncated_set(np.full(3, nothing), top_k=1, top_p=0.5).any()


FILTERS: list[dict[str, Any]] = [
    {"top_k": 12},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"top_k": 25, "top_p": 0.9, "min_p": 0.02},
]


def _laws(
    logits: np.ndarray, allowed: np.ndarray, truncation: str, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The whole row's law and that of the draw, by sorting: float64 [V]."""
    x = logits.astype(np.float64)
    if truncation == "target":
        x = np.where(_by_sorting(logits, **options)[0], x, -np.inf)
        return softmax(x), softmax(np.where(allowed, x, -np.inf))
    kept, _ = _by_sorting(np.where(allowed, logits, -np.inf).astype(np.float32), **options)
    return softmax(x), softmax(np.where(kept, x, -np.inf))


def _statistic(seen: np.ndarray, law: np.ndarray, count: int) -> tuple[float, int]:
    """Pearson's, of cells of at least 8 draws, and its degrees of freedom."""
    rare = law * count < 8
    cells = [
        *zip(seen[~rare], law[~rare] * count, strict=True),
        (seen[rare].sum(), law[rare].sum() * count),
    ]
    cells = [(o, e) for o, e in cells if e > 0]
    return sum((o - e) ** 2 / e for o, e in cells), len(cells) - 1


@pytest.mark.parametrize("truncation", ["target", "after_mask"])
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_draws_and_weights_follow_the_law(truncation: Any, options: dict[str, Any]) -> None:
    """20,000 draws by chi-square; the weight that makes E[w 1{x = t}] = p(t) of what is drawn, by
    enumeration.
    """
    rng = np.random.default_rng(4)
    logits = (rng.normal(size=(1, 60)) * 2).astype(np.float32)
    allowed = rng.random(60) < 0.5
    whole, drawn = _laws(logits[0], allowed, truncation, options)
    count = 20_000
    sample = masked_sample(
        logits,
        pack_mask(allowed)[None],
        rng.random((count, 2)),
        indices=np.zeros(count, np.int64),
        truncation=truncation,
        **options,
    )
    seen = np.bincount(sample.token, minlength=60)
    assert not seen[drawn == 0].any()
    statistic, freedom = _statistic(seen, drawn, count)
    assert statistic < chi2.isf(FALSE_ALARM, freedom)
    assert np.exp(sample.log_weight[0]) == pytest.approx(whole[drawn > 0].sum(), rel=2e-6)
    assert np.exp(sample.log_p) == pytest.approx(whole[sample.token], rel=4e-6)


def test_a_minimum_of_the_allowed_is_seen() -> None:
    """Negative control: min-p relative to the allowed maximum is another law than 'target'."""
    logits = np.array([[5.0, 2.0, 1.0, 0.0, -3.0]], np.float32)
    allowed = np.array([False, True, True, True, True])
    count = 4000
    arguments = logits, pack_mask(allowed)[None], np.random.default_rng(0).random((count, 2))
    options: dict[str, Any] = {"min_p": 0.01, "indices": np.zeros(count, np.int64)}
    truncation: Any
    _, law = _laws(logits[0], allowed, "target", {"min_p": 0.01})
    for truncation, right in (("target", True), ("after_mask", False)):
        sample = masked_sample(*arguments, truncation=truncation, **options)
        seen = np.bincount(sample.token, minlength=5)
        statistic, freedom = _statistic(seen, law, count)
        follows = not seen[law == 0].any() and statistic < chi2.isf(FALSE_ALARM, freedom)
        assert follows == right


def test_a_row_of_which_nothing_allowed_is_kept() -> None:
    """The truncated law has no allowed token: dead under 'target', alive after the mask."""
    logits = np.array([[9.0, 0.0, 0.0]], np.float32)
    mask = pack_mask(np.array([False, True, True]))[None]
    uniforms = np.array([[0.5, 0.9]])
    dead = masked_sample(logits, mask, uniforms, top_k=1, truncation="target")
    assert dead.status.tolist() == [NOTHING_ALLOWED]
    assert dead.log_weight.tolist() == [-np.inf]
    alive = masked_sample(logits, mask, uniforms, top_k=1, truncation="after_mask")
    assert alive.token.tolist() == [2]
    assert alive.log_weight[0] == pytest.approx(logsumexp([0, 0]) - logsumexp([9, 0, 0]), abs=2e-6)
