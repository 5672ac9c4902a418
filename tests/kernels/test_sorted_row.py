"""Rows in the order of bytes against the kernel that answers one question at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.next_byte import next_byte
from midstream.kernels.sorted_row import SortedRow, log_normalisers
from midstream.middleware.bytes.tail import byte_sorted
from midstream.middleware.vocabulary import Vocabulary

WORDS = [b"", b"", *(w.encode() for w in "a b c ab abc abd abcd b bc bcd ca cab ab".split())]
TOKENS = Vocabulary(WORDS, eos_ids=[0], special_ids=[1])


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("spread", [1.0, 900.0])
@pytest.mark.parametrize("masked", [False, True])
def test_masses_are_those_of_the_kernel(temperature: float, spread: float, masked: bool) -> None:
    rng = np.random.default_rng(3)
    known = byte_sorted(TOKENS)
    nodes = np.arange(known.low.size)
    for _ in range(5):
        logits = rng.normal(size=(1, len(WORDS) + 2)) * spread
        mask = pack_mask(rng.random(len(WORDS)) < 0.7) if masked else None
        told = next_byte(
            logits,
            known,
            nodes,
            indices=np.zeros_like(nodes),
            mask=None if mask is None else mask[None],
            temperature=temperature,
        )
        row = SortedRow(logits[0], known, mask, 1.0 / temperature)
        assert row.log_z == pytest.approx(told.log_z_all[0], rel=1e-13)
        assert row.log_z == pytest.approx(log_normalisers(logits, 1.0 / temperature)[0], rel=1e-13)
        assert row.log_end() == pytest.approx(told.log_eos[0], rel=1e-12, abs=1e-12)
        if mask is None:
            assert row.log_special() == pytest.approx(told.log_special[0], rel=1e-12, abs=1e-12)
        out = np.empty(257)
        for node in nodes.tolist():
            row.log_bytes(node, out)
            np.testing.assert_allclose(out[:256], told.log_mass[node, :256], rtol=1e-12, atol=1e-12)
            both = row.log_sum(int(known.low[node]), int(known.high[node]))
            parts = np.logaddexp.reduce(told.log_mass[node])
            assert both == pytest.approx(float(parts), rel=1e-11, abs=1e-11)
            begin, end = int(known.low[node]), int(known.high[node])
            if both > -math.inf:
                masses = row.weights(begin, end)
                logs = row.log_masses(begin, end)
                with np.errstate(divide="ignore"):
                    shares = np.log(masses / masses.sum()) + both
                some = shares > both - 600
                np.testing.assert_allclose(shares[some], logs[some], rtol=1e-11, atol=1e-11)


def test_rows_that_are_no_law() -> None:
    known = byte_sorted(TOKENS)
    for bad in (math.nan, math.inf):
        logits = np.zeros(len(WORDS))
        logits[3] = bad
        row = SortedRow(logits, known)
        assert not row.finite
        assert math.isnan(row.log_sum(0, 3)) and math.isnan(row.log_p(4))
    nothing = SortedRow(np.full(len(WORDS), -np.inf), known)
    assert not nothing.finite
