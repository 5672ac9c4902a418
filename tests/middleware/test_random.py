"""Streams: pure functions of (seed, sequence, position, purpose, index)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from midstream.kernels.philox import philox_block
from midstream.middleware.errors import InputError
from midstream.middleware.random import (
    PURPOSES,
    Stream,
    StreamSource,
    TokenUniforms,
    particle_sequence,
    sequence_of,
)


def test_golden_words() -> None:
    """The counter is (position, sequence, index, purpose), for ever: seeds would draw anew."""
    words = Stream(seed=2**33 + 5, sequence=6, position=7).words("phantom", 8)
    expected = [*philox_block(2**33 + 5, (7, 6, 0, 1)), *philox_block(2**33 + 5, (7, 6, 1, 1))]
    assert words.tolist() == expected
    assert PURPOSES["token"] == 0
    assert PURPOSES["resample"] == 2


def test_streams_do_not_share_noise() -> None:
    seen = set()
    for seed, sequence, position in itertools.product((0, 1, 2**40), (0, 1, 9), (0, 1, 5)):
        for purpose in PURPOSES:
            seen.add(tuple(Stream(seed, sequence, position).words(purpose, 4).tolist()))
    assert len(seen) == 27 * len(PURPOSES)


def test_more_uniforms_keep_the_first() -> None:
    stream = Stream(1, 2, 3)
    assert (stream.uniforms("token", 500)[17:30] == stream.uniforms("token", 13, 17)).all()


def test_uniforms_over_positions_are_uniform() -> None:
    values = np.concatenate([Stream(4, 1, t).uniforms("token", 2) for t in range(3000)])
    assert kstest(values, "uniform").pvalue > 1e-4


def test_choices_follow_their_weights_and_use_one_uniform_each() -> None:
    weights = np.array([0.2, 0.0, 0.5, 0.3])
    n = 4000
    chosen = [StreamSource(Stream(8, 0, t)).choose(weights) for t in range(n)]
    seen = np.bincount(chosen, minlength=4)
    assert seen[1] == 0
    live = weights > 0
    statistic = ((seen[live] - n * weights[live]) ** 2 / (n * weights[live])).sum()
    assert statistic < chi2.isf(1e-4, 2)
    source = StreamSource(Stream(8))
    first = [source.choose(weights) for _ in range(6)]
    cumulative = np.cumsum(weights)
    uniforms = Stream(8).uniforms("resample", 6)
    assert first == np.searchsorted(cumulative, uniforms, side="right").tolist()


def test_phantoms_are_geometric() -> None:
    live = 0.3
    counts = np.array(StreamSource(Stream(2)).phantoms(live, 20_000))
    seen = np.bincount(counts.astype(int), minlength=60)
    expected = 20_000 * live * (1 - live) ** np.arange(seen.size)
    cells = expected > 8
    statistic = ((seen[cells] - expected[cells]) ** 2 / expected[cells]).sum()
    assert statistic < chi2.isf(1e-4, int(cells.sum()))


def test_phantoms_pass_what_an_integer_holds() -> None:
    counts = StreamSource(Stream(2)).phantoms(1e-200, 100)
    assert all(np.isfinite(counts))
    assert np.mean(counts) > 1e198


def test_sequences_of_prompts() -> None:
    assert sequence_of([1, 2, 3]) == sequence_of((1, 2, 3))
    numbers = {
        sequence_of([1, 2, 3]),
        sequence_of([1, 2, 3], 1),
        sequence_of([1, 2]),
        sequence_of([]),
    }
    assert len(numbers) == 4
    assert len({particle_sequence(77, i) for i in range(1000)}) == 1000
    assert particle_sequence(77, 0) == 77
    assert particle_sequence(7, 3) != sequence_of([7], 3)  # a prompt of one token


def test_the_uniforms_of_many_positions_are_those_of_each() -> None:
    ahead = TokenUniforms(2**63 + 5, 77)
    for position in (0, 1, 63, 64, 3, 1000, 2**32 - 1):
        alone = Stream(2**63 + 5, 77, position).uniforms("token", 4)
        assert ahead.at(position) == alone.tolist()
    with pytest.raises(InputError, match="position"):
        ahead.at(2**32)
