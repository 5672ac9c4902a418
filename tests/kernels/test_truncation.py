"""Top-k, top-p and min-p keep what transformers' warpers keep, ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from midstream.kernels.truncation import truncated_set


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


def test_ties() -> None:
    logits = np.array([1.0, 3.0, 3.0, 3.0, 0.0])
    assert truncated_set(logits, top_k=2).tolist() == [False, True, True, True, False]
    assert _warped(logits, 2, 1.0, 0.0).tolist() == [False, True, True, True, False]
    # Of equal tokens the lower id stays.
    assert truncated_set(logits, top_p=0.5).tolist() == [False, True, True, False, False]


def test_temperature_comes_first() -> None:
    logits = np.log([0.5, 0.3, 0.2])
    assert truncated_set(logits, top_p=0.6).sum() == 2
    assert truncated_set(logits, top_p=0.6, inverse_temperature=5.0).sum() == 1


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 0.999}])
def test_the_most_probable_token_always_stays(options: dict[str, Any]) -> None:
    assert truncated_set(np.array([0.0, 2.0, 1.0]), **options).tolist() == [False, True, False]


def test_tokens_of_no_mass_never_stay() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf])
    assert truncated_set(logits).tolist() == [False, True, False]
    assert truncated_set(logits, top_k=2, top_p=0.99, min_p=0.1).tolist() == [False, True, False]
    assert not truncated_set(np.full(3, -np.inf), top_k=1, top_p=0.5).any()
