"""Masses of the next byte against sums over a dictionary of the tokens."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.masked_sampling import NOT_FINITE, NOTHING_ALLOWED, OK
from midstream.kernels.next_byte import ENDS, ByteSortedVocabulary, NextByte, next_byte

TOLERANCE = 1e-12
"""Of the log of a mass, so that it is the relative error of the mass."""

LETTERS = [0, 32, 97, 98, 255]


def _vocabulary(size: int, seed: int, *, special: int = 3) -> list[bytes]:
    """Tokens of one to six letters, some of them twice, and some that spell nothing."""
    rng = np.random.default_rng(seed)
    tokens = [bytes(rng.choice(LETTERS, rng.integers(1, 7)).tolist()) for _ in range(size)]
    for t in rng.choice(size, min(special, size), replace=False).tolist():
        tokens[t] = b""
    return tokens


def _log_sum(values: list[np.longdouble]) -> float:
    if not values or max(values) == -np.inf:
        return -np.inf
    top = max(values)
    return float(top + np.log(sum(np.exp(value - top) for value in values)))


def _by_dictionary(
    logits: np.ndarray,
    tokens: list[bytes],
    prefix: bytes,
    *,
    allowed: np.ndarray | None = None,
    temperature: float = 1.0,
) -> tuple[np.ndarray, float]:
    """Log masses [257] and that of special ids, in 80-bit floats, from the definition."""
    x = logits.astype(np.longdouble) / np.longdouble(temperature)
    x = x - max(x)
    law = x - np.log(np.exp(x).sum())
    bins: dict[int, list[np.longdouble]] = {}
    for t, log_p in enumerate(law):
        spelling = tokens[t] if t < len(tokens) else b""
        if allowed is not None and not allowed[t]:
            continue
        if not spelling:
            bins.setdefault(-1, []).append(log_p)
        elif spelling == prefix:
            bins.setdefault(ENDS, []).append(log_p)
        elif spelling.startswith(prefix):
            bins.setdefault(spelling[len(prefix)], []).append(log_p)
    return np.array([_log_sum(bins.get(c, [])) for c in range(257)]), _log_sum(bins.get(-1, []))


def _agree(ours: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    dead = np.isneginf(expected)
    near = np.abs(ours[~dead] - expected[~dead]) <= tolerance * np.maximum(
        1, 1e-3 * abs(expected[~dead])
    )
    return bool((np.isneginf(ours) == dead).all() and near.all())


@given(
    st.integers(1, 200),
    st.integers(0, 4),
    st.floats(0.05, 3.0),
    st.floats(0.1, 30.0),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=120, deadline=None)
def test_against_a_dictionary(
    size: int, beyond: int, temperature: float, scale: float, masked: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tokens = _vocabulary(size, seed)
    logits = (rng.normal(size=(1, size + beyond)) * scale).astype(np.float32)
    logits[0, rng.random(size + beyond) < 0.1] = -np.inf
    logits[0, rng.integers(size)] = 1.0
    allowed = rng.random(size + beyond) < 0.6 if masked else None
    vocabulary = ByteSortedVocabulary(tokens)
    prefixes = [b"", *(s[: rng.integers(0, len(s) + 1)] for s in tokens[:6]), b"no such"]
    result = next_byte(
        logits,
        vocabulary,
        np.array([vocabulary.node(prefix) for prefix in prefixes]),
        indices=np.zeros(len(prefixes), np.int64),
        mask=None if allowed is None else pack_mask(allowed)[None],
        temperature=temperature,
    )
    for p, prefix in enumerate(prefixes):
        bins, special = _by_dictionary(
            logits[0], tokens, prefix, allowed=allowed, temperature=temperature
        )
        if prefix == b"no such":
            bins[:] = -np.inf
        assert _agree(result.log_mass[p], bins)
        assert _agree(result.log_special[p : p + 1], np.array([special]))
        assert result.status[p] == OK


@given(st.integers(2, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_root_takes_everything(size: int, seed: int) -> None:
    tokens = _vocabulary(size, seed, special=2)
    eos = [t for t, spelling in enumerate(tokens) if not spelling][:1]
    logits = (np.random.default_rng(seed).normal(size=(2, size + 3)) * 4).astype(np.float32)
    result = next_byte(logits, ByteSortedVocabulary(tokens, eos_ids=eos), np.zeros(2, np.int64))
    total = np.exp(result.log_mass).sum(axis=1) + np.exp(result.log_eos)
    np.testing.assert_allclose(total + np.exp(result.log_special), 1.0, rtol=1e-13)
    assert np.isneginf(result.log_mass[:, ENDS]).all()
    law = logits - result.log_z_all[:, None]
    np.testing.assert_allclose(result.log_eos, law[:, eos[0]], atol=1e-12)


def test_a_child_holds_what_its_byte_was_given() -> None:
    """The masses below a node sum to the bin that led to it, at every node of a vocabulary."""
    tokens = _vocabulary(300, 5)
    vocabulary = ByteSortedVocabulary(tokens)
    logits = (np.random.default_rng(5).normal(size=(1, 300)) * 9).astype(np.float32)
    nodes = np.arange(vocabulary.low.size)
    mass = next_byte(logits, vocabulary, nodes, indices=np.zeros_like(nodes)).log_mass
    for node in range(vocabulary.low.size):
        for child in range(vocabulary.first_child[node], vocabulary.first_child[node + 1]):
            below = np.logaddexp.reduce(mass[child])
            assert below == pytest.approx(mass[node, vocabulary.byte[child]], abs=1e-12)


def _rare() -> tuple[np.ndarray, list[bytes]]:
    """Bytes b, c, d, e after a whose masses are about 1, 1e-30, 1e-12 and 1e-300 of the whole."""
    tokens = [b"ab", b"ac", b"ad", b"ae", b"ac", b"ac!"]
    return np.array([[0.0, -69.0, -27.6, -690.0, -69.5, -70.0]], np.float32), tokens


def _by_differences(logits: np.ndarray, vocabulary: ByteSortedVocabulary, node: int) -> np.ndarray:
    """The known mistake: masses as differences of one cumulative sum."""
    law = np.exp(logits - logits.max())
    ends = np.concatenate([[0.0], np.cumsum((law / law.sum())[vocabulary.order], dtype=np.float64)])
    bins = np.full(257, -np.inf)
    for child in range(vocabulary.first_child[node], vocabulary.first_child[node + 1]):
        mass = ends[vocabulary.high[child]] - ends[vocabulary.low[child]]
        bins[vocabulary.byte[child]] = np.log(mass) if mass > 0 else -np.inf
    return bins


def test_rare_bytes_keep_their_mass() -> None:
    logits, tokens = _rare()
    vocabulary = ByteSortedVocabulary(tokens)
    node = vocabulary.node(b"a")
    ours = next_byte(logits, vocabulary, np.array([node])).log_mass[0]
    expected, _ = _by_dictionary(logits[0], tokens, b"a")
    assert np.exp(expected[ord("c")]) < 1e-29
    assert _agree(ours, expected)
    assert not _agree(_by_differences(logits[0], vocabulary, node), expected, tolerance=1e-3)


@pytest.mark.parametrize("temperature", [0.05, 0.011])
def test_masses_beyond_the_smallest_float_stay_apart(temperature: float) -> None:
    logits, tokens = _rare()
    vocabulary = ByteSortedVocabulary(tokens)
    nodes = np.array([0, vocabulary.node(b"a"), vocabulary.node(b"ac")])
    result = next_byte(
        logits, vocabulary, nodes, indices=np.zeros(3, np.int64), temperature=temperature
    )
    for p, prefix in enumerate([b"", b"a", b"ac"]):
        expected, _ = _by_dictionary(logits[0], tokens, prefix, temperature=temperature)
        assert _agree(result.log_mass[p], expected)
    assert result.log_mass[1, ord("e")] < -10_000  # the mass itself is 0 in any float


def test_end_of_sequence_is_apart_from_other_special_tokens() -> None:
    tokens = [b"", b"a", b"", b"", b"ab"]
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.05, 0.15, 0.2]]))
    vocabulary = ByteSortedVocabulary(tokens, eos_ids=[3, 0])
    result = next_byte(logits, vocabulary, np.array([0]))
    assert np.exp(result.log_eos[0]) == pytest.approx(0.15)
    assert np.exp(result.log_special[0]) == pytest.approx(0.5)  # id 5 is beyond the vocabulary
    assert np.exp(result.log_mass[0, 97]) == pytest.approx(0.35)
    masked = next_byte(logits, vocabulary, np.array([0]), mask=np.array([[0b10010]], np.uint32))
    assert np.isneginf([masked.log_eos[0], masked.log_special[0]]).all()
    assert masked.log_mass[0, 97] == pytest.approx(np.log(0.35))  # not shared out again


def test_broken_and_empty_rows_are_values() -> None:
    tokens = _vocabulary(60, 1)
    logits = np.random.default_rng(1).normal(size=(6, 60)).astype(np.float32)
    logits[0, 7], logits[1, 7] = np.nan, np.inf
    logits[2], logits[3] = -np.inf, np.finfo(np.float32).min
    mask = np.full((6, 2), 0xFFFFFFFF, np.uint32)
    mask[:, 0] &= ~np.uint32(1 << 7)  # what is wrong stands outside the mask
    mask[4] = 0
    result = next_byte(logits, ByteSortedVocabulary(tokens), np.zeros(6, np.int64), mask=mask)
    broken, nothing = NOT_FINITE, NOTHING_ALLOWED
    assert result.status.tolist() == [broken, broken, nothing, nothing, OK, OK]
    assert np.isnan(result.log_mass[:2]).all()
    assert np.isneginf(result.log_mass[2:5]).all()
    assert np.isneginf(result.log_z_all[2:4]).all()
    assert np.isfinite(result.log_z_all[4:]).all()


def _fields(result: NextByte) -> list[Any]:
    return [getattr(result, name) for name in NextByte.__slots__]


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_row_is_the_same_in_any_batch_and_place(rows: int) -> None:
    tokens = _vocabulary(500, 9)
    vocabulary = ByteSortedVocabulary(tokens)
    rng = np.random.default_rng(9)
    logits = (rng.normal(size=(rows, 500)) * 5).astype(np.float32)
    nodes = rng.integers(-1, vocabulary.low.size, rows)
    heat = rng.uniform(0.1, 2.0, rows)
    whole = _fields(next_byte(logits, vocabulary, nodes, temperature=heat))
    order = rng.permutation(rows)
    moved = next_byte(logits[order], vocabulary, nodes[order], temperature=heat[order])
    shared = next_byte(logits, vocabulary, nodes[order], indices=order, temperature=heat)
    alone = next_byte(logits[-1:], vocabulary, nodes[-1:], temperature=heat[-1:])
    for i, field in enumerate(whole):
        assert (_fields(moved)[i] == field[order]).all()
        assert (_fields(shared)[i] == field[order]).all()
        assert (_fields(alone)[i][0] == field[-1]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_give_tensors(dtype: torch.dtype) -> None:
    tokens = _vocabulary(90, 2)
    vocabulary = ByteSortedVocabulary(tokens)
    tensor = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 90)) * 4).to(dtype)
    nodes = np.array([0, vocabulary.node(b"a"), -1])
    mask = np.full((3, 3), 0x55555555, np.uint32)
    ours = next_byte(
        tensor,
        vocabulary,
        torch.from_numpy(nodes),
        mask=torch.from_numpy(mask.view(np.int32)),
        temperature=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64),
    )
    plain = tensor.float().numpy()
    expected = next_byte(plain, vocabulary, nodes, mask=mask, temperature=[0.5, 1.0, 2.0])
    for ours_of, expected_of in zip(_fields(ours), _fields(expected), strict=True):
        assert isinstance(ours_of, torch.Tensor)
        assert (ours_of.numpy() == expected_of).all()
    assert ours.log_mass.dtype == torch.float64
    assert ours.log_mass.shape == (3, 257)


def test_no_rows() -> None:
    result = next_byte(np.zeros((0, 4)), ByteSortedVocabulary([b"a"] * 4), np.zeros(0, np.int64))
    assert result.log_mass.shape == (0, 257)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": np.zeros((1, 3))}, r"logits: got float64 \[1, 3\]; .* at least 4"),
        ({"logits": np.zeros((1, 4), int)}, "logits: got int64"),
        ({"nodes": np.zeros(2, int)}, r"nodes: got int64 \[2\]; accepted: integers \[1\]"),
        ({"nodes": np.array([3])}, "nodes: got 3 to 3; accepted: -1 to 2"),
        ({"nodes": np.array([-2])}, "nodes: got -2"),
        ({"nodes": np.array([0.0])}, "nodes: got float64"),
        ({"indices": np.array([1])}, "indices: got 1 to 1; accepted: 0 to 0"),
        ({"mask": np.zeros((2, 1), np.uint32)}, r"mask: got uint32 \[2, 1\]"),
        ({"temperature": 0.0}, "temperature: got 0.0"),
        ({"temperature": [1.0, 1.0]}, r"temperature: got \[2\]; accepted: a number or \[1\]"),
        ({"temperature": np.nan}, "temperature: got nan"),
        ({"backend": "cuda"}, "backend: got 'cuda'"),
    ],
)
def test_wrong_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    vocabulary = ByteSortedVocabulary([b"a", b"b", b"a", b"b"])
    given: dict[str, Any] = {"logits": np.zeros((1, 4)), "nodes": np.zeros(1, int), **changed}
    with pytest.raises(ValueError, match=message):
        next_byte(given.pop("logits"), vocabulary, given.pop("nodes"), **given)


def test_a_vocabulary_of_size() -> None:
    """Thirty thousand tokens of text, every byte of it against the dictionary."""
    text = "".join(sorted(sys.stdlib_module_names)).encode() * 3
    rng = np.random.default_rng(3)
    begins = rng.integers(0, len(text) - 12, 30_000).tolist()
    tokens = [text[i : i + n] for i, n in zip(begins, rng.integers(1, 12, 30_000), strict=True)]
    logits = (rng.normal(size=(1, 30_000)) * 4).astype(np.float32)
    vocabulary = ByteSortedVocabulary(tokens)
    for prefix in (b"", b"_", tokens[0][:1]):
        ours = next_byte(logits, vocabulary, np.array([vocabulary.node(prefix)])).log_mass[0]
        expected, _ = _by_dictionary(logits[0], tokens, prefix)
        assert _agree(ours, expected)
