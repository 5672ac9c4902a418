"""Keys of random numbers: the uniforms of a `Stream`, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.keys import Keys
from midstream.middleware.random import PURPOSES, Stream

WORDS = st.integers(0, 2**32 - 1)


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), WORDS, WORDS), max_size=5),
    st.sampled_from(sorted(PURPOSES)),
    st.integers(0, 5),
    st.integers(0, 7),
)
@settings(deadline=None)
def test_uniforms_are_those_of_streams(
    keys: list[tuple[int, int, int]], purpose: str, first: int, count: int
) -> None:
    columns = np.array(keys, np.uint64).reshape(-1, 3).T
    found = Keys(*columns, PURPOSES[purpose], first).uniforms(count)
    assert found.shape == (len(keys), count, 2)
    for (seed, sequence, position), uniforms in zip(keys, found, strict=True):
        stream = Stream(seed, sequence, position)
        assert (uniforms.reshape(-1) == stream.uniforms(purpose, 2 * count, 2 * first)).all()


def test_golden_bits() -> None:
    """Changing these changes everybody's seeds."""
    uniforms = Keys(np.array([2**40 + 17]), np.array([9]), np.array([7]), 3).uniforms(2)
    assert [each.hex() for each in uniforms.reshape(-1).tolist()] == [
        "0x1.fdb8cc0000000p-2",
        "0x1.83e9860000000p-3",
        "0x1.27f1ac0000000p-1",
        "0x1.cd84560000000p-2",
    ]


def test_tensors_count_by_their_bits() -> None:
    seed, number = np.array([-3, 5]), np.array([2**32 - 1, 4])
    tensors = Keys(*(torch.tensor(each) for each in (seed, number, number)), 1).uniforms(3)
    assert (tensors == Keys(seed, number, number, 1).uniforms(3)).all()
    assert (tensors == Keys(seed.astype(np.uint64), number, number, 1).uniforms(3)).all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("seed", {"seed": np.zeros(2)}),
        ("seed", {"seed": np.int64(1)}),
        ("sequence", {"sequence": np.zeros(3, np.int64)}),
        ("sequence", {"sequence": np.array([0, 2**32])}),
        ("position", {"position": np.array([0, -1])}),
        ("position", {"position": torch.zeros(2, dtype=torch.int32)}),
        ("purpose", {"purpose": -1}),
        ("first", {"first": -1}),
    ],
)
def test_what_is_no_key(name: str, arguments: dict[str, Any]) -> None:
    zeros = np.zeros(2, np.int64)
    right: dict[str, Any] = {"seed": zeros, "sequence": zeros, "position": zeros, "purpose": 0}
    assert len(Keys(**right)) == 2
    with pytest.raises(ValueError, match=f"^{name}: got"):
        Keys(**{**right, **arguments})
