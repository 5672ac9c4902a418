"""`next_byte` in the interpreter against numpy: masses to 1e-6, rows bit for bit in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.bitmask import mask_words
from midstream.kernels.next_byte import ENDS, ByteSortedVocabulary, NextByte, next_byte
from midstream.kernels.triton import byte_tables, stretch_masses

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinities

TOLERANCE = 2e-6
"""Of the log of a mass at any size of it: what the terms, in float32, are good for."""

FIELDS = NextByte.__slots__


def _vocabulary(size: int, seed: int) -> ByteSortedVocabulary:
    rng = np.random.default_rng(seed)
    letters = [0, 32, 97, 98, 255] if size < 400 else list(range(256))
    tokens = [bytes(rng.choice(letters, rng.integers(1, 5)).tolist()) for _ in range(size)]
    special = rng.choice(size, min(size, 5), replace=False).tolist()
    for t in special:
        tokens[t] = b""
    return ByteSortedVocabulary(tokens, eos_ids=special[:2])


def _assert_close(ours: NextByte, expected: NextByte) -> None:
    assert torch.equal(ours.status, expected.status)
    for name in FIELDS[:4]:
        a, b = getattr(ours, name), getattr(expected, name)
        assert a.shape == b.shape
        assert torch.equal(a.isneginf(), b.isneginf())
        assert torch.equal(a.isnan(), b.isnan())
        known = b.isfinite()
        error = (a[known] - b[known]).abs()
        assert not error.numel() or error.max() <= TOLERANCE


@given(
    st.integers(1, 300),
    st.integers(0, 3),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    st.sampled_from([1.0, 0.05, 0.7, "rows"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_as_in_numpy(
    size: int, beyond: int, dtype: torch.dtype, heat: Any, masked: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = _vocabulary(size, seed)
    logits = torch.from_numpy(rng.normal(size=(2, size + beyond)) * rng.uniform(0, 12)).to(dtype)
    logits[torch.from_numpy(rng.random(logits.shape) < 0.2)] = -torch.inf
    words = rng.integers(0, 2**32, (2, mask_words(size) + int(rng.integers(-1, 2))), np.uint32)
    given: dict[str, Any] = {
        "indices": torch.tensor([0, 1, 1]),
        "mask": torch.from_numpy(words.view(np.int32)) if masked else None,
        "temperature": torch.tensor([0.5, 2.0], dtype=torch.float64) if heat == "rows" else heat,
    }
    nodes = torch.tensor([0, -1, int(rng.integers(vocabulary.low.size))])
    ours = next_byte(logits, vocabulary, nodes, backend="triton", **given)
    _assert_close(ours, next_byte(logits, vocabulary, nodes, backend="numpy", **given))


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_stretches_of_many_runs(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Runs of 32 tokens, dealt out to four programs a stretch, of a row of two blocks."""
    monkeypatch.setattr(stretch_masses, "GATHER", 32)
    monkeypatch.setattr(byte_tables, "SPLIT", 100)
    vocabulary = _vocabulary(390, 3)
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 2100)) * 6).float()
    nodes = torch.tensor([0, vocabulary.node(b"a")])
    given: dict[str, Any] = {"indices": torch.zeros(2, dtype=torch.int64)}
    given["temperature"] = temperature
    ours = next_byte(logits, vocabulary, nodes, backend="triton", **given)
    _assert_close(ours, next_byte(logits, vocabulary, nodes, backend="numpy", **given))


def test_all_bytes_have_children() -> None:
    vocabulary = _vocabulary(1500, 4)
    assert np.diff(vocabulary.first_child).max() == 256
    logits = torch.from_numpy(np.random.default_rng(4).normal(size=(1, 1500)) * 4)
    nodes = torch.zeros(1, dtype=torch.int64)
    ours = next_byte(logits.float(), vocabulary, nodes, backend="triton")
    _assert_close(ours, next_byte(logits.float(), vocabulary, nodes, backend="numpy"))
    assert not ours.log_mass[0, :ENDS].isneginf().any()


def test_masses_below_the_smallest_float() -> None:
    """Bytes of 1e-30 and of e^-13800, which no float holds, each by its own maximum."""
    vocabulary = ByteSortedVocabulary([b"ab", b"ac", b"ad", b"ae", b"ac", b"ac!"])
    logits = torch.tensor([[0.0, -69.0, -27.6, -690.0, -69.5, -70.0]])
    nodes = torch.tensor([vocabulary.node(b"a")])
    for temperature in (1.0, 0.05):
        given: dict[str, Any] = {"temperature": temperature}
        ours = next_byte(logits, vocabulary, nodes, backend="triton", **given)
        expected = next_byte(logits, vocabulary, nodes, backend="numpy", **given)
        _assert_close(ours, expected)
        assert ours.log_mass[0, ord("e")] < -689 / temperature


def test_broken_and_empty_rows() -> None:
    vocabulary = _vocabulary(60, 1)
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 60))).float()
    logits[0, 7], logits[1, 7] = torch.nan, torch.inf
    logits[2], logits[3] = -torch.inf, torch.finfo(torch.float32).min
    nodes = torch.zeros(5, dtype=torch.int64)
    mask = torch.full((5, 2), ~(1 << 7), dtype=torch.int32)
    ours = next_byte(logits, vocabulary, nodes, mask=mask, backend="triton")
    assert ours.status.tolist() == [2, 2, 1, 1, 0]
    _assert_close(ours, next_byte(logits, vocabulary, nodes, mask=mask, backend="numpy"))


def test_a_row_is_the_same_in_any_batch_and_place() -> None:
    vocabulary = _vocabulary(300, 9)
    rng = np.random.default_rng(9)
    logits = torch.from_numpy(rng.normal(size=(7, 300)) * 5).bfloat16()
    nodes = torch.from_numpy(rng.integers(0, vocabulary.low.size, 7))
    heat = torch.from_numpy(rng.uniform(0.1, 2.0, 7))
    whole = next_byte(logits, vocabulary, nodes, temperature=heat, backend="triton")
    wide = torch.empty(7, 340, dtype=torch.bfloat16)  # rows further apart
    order = torch.from_numpy(rng.permutation(7))
    wide[:, :300] = logits[order]
    for some, rows in ((wide[:, :300], order), (logits[6:], torch.tensor([6]))):
        part = next_byte(some, vocabulary, nodes[rows], temperature=heat[rows], backend="triton")
        for name in FIELDS:
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows])


def test_no_rows_and_what_is_no_law() -> None:
    vocabulary = ByteSortedVocabulary([b"a", b"b"])
    nodes = torch.zeros(0, dtype=torch.int64)
    assert next_byte(torch.zeros(0, 2), vocabulary, nodes, backend="triton").log_mass.shape == (
        0,
        257,
    )
    nodes = torch.zeros(1, dtype=torch.int64)
    for temperature in (0.0, 1e-7):
        with pytest.raises(ValueError, match="temperature: got"):
            next_byte(
                torch.zeros(1, 2), vocabulary, nodes, temperature=temperature, backend="triton"
            )
    with pytest.raises(ValueError, match=r"logits: got torch\.float64"):
        next_byte(torch.zeros(1, 2, dtype=torch.float64), vocabulary, nodes, backend="triton")
