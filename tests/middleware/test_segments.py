"""Particles over a host that draws inside its engine: the same tokens and weights as over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from midstream.middleware.budget import within_budget
from midstream.middleware.errors import StrategyError
from midstream.middleware.matcher import next_state
from midstream.middleware.potentials import Potential
from midstream.middleware.random import Stream
from midstream.middleware.segments import Continuation, Segment, run_segments
from midstream.middleware.smc import run
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

VOCABULARY = Vocabulary([b"a", b"b", b"ab", b""], eos_ids=(3,))
LENGTH = 9


def logits_of(ids: Sequence[int]) -> np.ndarray:
    """Logits that depend on the whole prefix."""
    number = 0
    for token in ids:
        number = (number * 31 + token + 1) % 2**32
    return np.random.default_rng(number).normal(size=4) * 1.5


class TableRows:
    def __init__(self, prefixes: list[tuple[int, ...]]) -> None:
        self.prefixes = prefixes
        self.logits = np.stack([logits_of(prefix) for prefix in prefixes])

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> TableRows:
        pairs = zip(parents, tokens, strict=True)
        return TableRows([(*self.prefixes[parent], token) for parent, token in pairs])


class TableSegments:
    """A host that draws by itself, token by token, as an engine does."""

    vocabulary = VOCABULARY

    def __init__(self, *, replays: bool = True) -> None:
        self.replays = replays
        self.asked: list[Continuation] = []

    def extend(
        self,
        prefixes: Sequence[Continuation],
        steps: int,
        strategy: Strategy,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Segment]:
        self.asked.extend(prefixes)
        return [self._extend(prefix, steps, strategy) for prefix in prefixes]

    def _extend(self, prefix: Continuation, steps: int, strategy: Strategy) -> Segment:
        matcher = within_budget(
            strategy.build_constraint().compile(VOCABULARY), strategy.limits.max_new_tokens
        )
        state = matcher.start()
        for token in prefix.generated if self.replays else ():
            state, _ = next_state(matcher, state, token)
        generated, log_weight, status = list(prefix.generated), 0.0, "running"
        for _ in range(steps):
            stream = Stream(strategy.seed, prefix.sequence, len(generated))
            logits = logits_of([*prefix.prompt, *generated])
            draw = strategy.build_sampler().draw(logits, matcher, state, stream)
            log_weight, status = log_weight + draw.log_weight, draw.status
            if draw.token >= 0:
                generated.append(draw.token)
            if status != "running":
                break
            state, _ = next_state(matcher, state, draw.token)
        return Segment(tuple(generated[len(prefix.generated) :]), log_weight, 0, status)


def _strategy(**smc: Any) -> Strategy:
    return Strategy(
        constraint={"regex": "(a|b){2,7}a"},
        smc={"particles": 6, **smc},
        seed=5,
        limits={"max_new_tokens": LENGTH},
    )


def _over_rows(strategy: Strategy, sequence: int) -> Any:
    matcher = strategy.build_constraint().compile(VOCABULARY)
    return run(TableRows([(7,)]), matcher, sequence=sequence, **strategy.run_options())


@pytest.mark.parametrize("every", [1, 2, 4, LENGTH])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_segments_and_rows_draw_the_same(every: int, threshold: float) -> None:
    strategy = _strategy(resample_every=every, ess_threshold=threshold)
    for sequence in range(10):
        rows = _over_rows(strategy, sequence)
        segments = run_segments(TableSegments(), [7], strategy, sequence=sequence)
        assert [p.token_ids for p in segments.particles] == [p.token_ids for p in rows.particles]
        assert [p.status for p in segments.particles] == [p.status for p in rows.particles]
        weights = [[p.log_weight for p in r.particles] for r in (segments, rows)]
        np.testing.assert_allclose(weights[0], weights[1], rtol=1e-12)


def test_resampling_happens_and_the_keys_are_distinct() -> None:
    strategy = _strategy(resample_every=2, ess_threshold=1.0)
    resampled = 0
    for sequence in range(10):
        host = TableSegments()
        result = run_segments(host, [7], strategy, sequence=sequence)
        resampled += any(ancestors != tuple(range(6)) for ancestors in result.ancestry)
        keys = [(prefix.slot, prefix.segment) for prefix in host.asked]
        assert len(keys) == len(set(keys))
    assert resampled >= 3


def test_an_engine_that_forgets_the_generated_text_is_found_out() -> None:
    strategy = _strategy(resample_every=2, ess_threshold=1.0)
    differences = 0
    for sequence in range(10):
        rows = _over_rows(strategy, sequence)
        found = run_segments(TableSegments(replays=False), [7], strategy, sequence=sequence)
        differences += [p.token_ids for p in found.particles] != [
            p.token_ids for p in rows.particles
        ]
    assert differences


def test_the_evidence_does_not_depend_on_where_segments_end() -> None:
    """Means over 400 runs, 3 particles: within 4.5 standard errors of each other (1e-5)."""
    means = {}
    for every in (1, 4):
        strategy = _strategy(particles=3, resample_every=every)
        host = TableSegments()
        evidence = [
            math.exp(run_segments(host, [7], strategy, sequence=i * 17).log_evidence)
            for i in range(400)
        ]
        means[every] = np.mean(evidence), np.std(evidence) / 20
    gap = abs(means[1][0] - means[4][0])
    assert gap < 4.5 * math.hypot(means[1][1], means[4][1])


def test_potentials_and_cancellation() -> None:
    strategy = _strategy(resample_every=3)
    forbidding = Potential(complete=lambda text: -math.inf if text.endswith(b"ba") else 0.0)
    result = run_segments(TableSegments(), [7], strategy, potentials=[forbidding])
    assert not any(p.status == "finished" and p.text.endswith("ba") for p in result.particles)
    asked = iter([False, True])
    stopped = run_segments(TableSegments(), [7], strategy, cancelled=lambda: next(asked))
    assert "cancelled" in {p.status for p in stopped.particles}


def test_greedy_is_refused() -> None:
    with pytest.raises(StrategyError, match=r"law\.temperature"):
        run_segments(TableSegments(), [7], Strategy(law={"temperature": 0.0}))
