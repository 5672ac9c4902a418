"""SMC by enumeration: E[sum of the weights of a text / N] = p(text),
for every scheme and number of particles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from midstream.middleware import population, smc
from midstream.middleware.estimators import Schedule
from midstream.middleware.particles import Particle
from midstream.middleware.potentials import Potential
from midstream.middleware.sampling import AWRS, Mask

A, B, END = 0, 1, 2
COMPLETE = frozenset({(A, A), (A, B), (B, B)})
SCHEMES = ["systematic", "stratified", "residual", "multinomial"]


def table(prefix: tuple[int, ...]) -> Sequence[float]:
    """Masking is fooled: `a` is likely and then hardly ever goes on as the constraint wants."""
    return {
        (): [0.7, 0.1, 0.2],
        (A,): [0.02, 0.01, 0.97],
        (B,): [0.3, 0.6, 0.1],
    }.get(prefix, [0.2, 0.3, 0.5])


def probability(text: tuple[int, ...]) -> float:
    tokens = (*text, END)
    return math.prod(table(tokens[:i])[token] for i, token in enumerate(tokens))


def _moments(exact: Any, particles: int, **options: Any) -> dict[tuple[int, ...], float]:
    """E[sum of weights of each complete text / N] over every random choice of the run."""
    matcher = exact.matcher(exact.vocabulary(3, (END,)), options.pop("complete", COMPLETE))
    model = options.pop("table", table)
    options.setdefault("sampler", Mask())

    def run(source: Any) -> Any:
        return smc.run(
            exact.rows(model, [()]),
            matcher,
            particles=particles,
            max_new_tokens=3,
            seed=0,
            sources=lambda sequence, position: source,
            **options,
        )

    moments: dict[tuple[int, ...], float] = {}
    total = 0.0
    for p, result in exact.runs(run):
        total += p
        for particle in result.particles:
            if particle.status == "finished":
                text = particle.token_ids[:-1]
                share = p * math.exp(particle.log_weight) / particles
                moments[text] = moments.get(text, 0.0) + share
        evidence = sum(math.exp(q.log_weight) for q in result.particles if q.status == "finished")
        assert math.exp(result.log_evidence) == pytest.approx(evidence / particles, rel=1e-12)
    assert total == pytest.approx(1, abs=1e-9)
    return moments


def _deviation(moments: dict[tuple[int, ...], float], truth: dict[tuple[int, ...], float]) -> float:
    assert set(moments) <= set(truth)
    return max(abs(moments.get(text, 0.0) / value - 1) for text, value in truth.items())


TRUTH = {text: probability(text) for text in COMPLETE}


@pytest.mark.parametrize("finished", ["aside", "together"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("particles", [1, 2, 3])
def test_weights_of_each_text_are_unbiased(
    exact: Any, scheme: str, particles: int, finished: str
) -> None:
    for threshold in (0.0, 0.5, 1.0):
        moments = _moments(
            exact, particles, resampling=scheme, finished=finished, ess_threshold=threshold
        )
        assert _deviation(moments, TRUTH) <= 1e-9


MANY = [(4, scheme) for scheme in SCHEMES] + [(n, "systematic") for n in (5, 6, 7, 8)]
"""Eight particles have 8^8 outcomes of one resampling by the other schemes:
too many to enumerate.
"""


@pytest.mark.parametrize(("particles", "scheme"), MANY)
def test_many_particles(exact: Any, scheme: str, particles: int) -> None:
    """Two first tokens, then one way on, with very different masses:
    resampling is what branches.
    """
    complete = frozenset({(A, A), (B, B)})
    truth = {text: probability(text) for text in complete}
    options: dict[str, Any] = {"complete": complete, "resampling": scheme}
    assert _deviation(_moments(exact, particles, ess_threshold=1.0, **options), truth) <= 1e-9


def test_the_many_particles_are_resampled(exact: Any) -> None:
    """What the test above rests on."""
    matcher = exact.matcher(exact.vocabulary(3, (END,)), frozenset({(A, A), (B, B)}))
    options: dict[str, Any] = {"particles": 8, "max_new_tokens": 3, "ess_threshold": 1.0}
    results = [smc.run(exact.rows(table, [()]), matcher, seed=seed, **options) for seed in range(8)]
    assert any(step != tuple(range(8)) for result in results for step in result.ancestry)


@pytest.mark.parametrize("estimator", ["geometric", "recursive"])
def test_with_rejection_sampling(exact: Any, estimator: Any) -> None:
    sampler = AWRS(accepts=2, estimator=estimator, schedule=Schedule((1,), 0.0))
    complete = frozenset({(A,), (B,)})
    truth = {text: probability(text) for text in complete}
    moments = _moments(exact, 1, sampler=sampler, complete=complete)
    assert _deviation(moments, truth) <= 1e-9
    walk = AWRS(estimator="recursive", schedule=Schedule((1,), 0.0))
    moments = _moments(exact, 2, sampler=walk, complete=complete, ess_threshold=1.0)
    assert _deviation(moments, truth) <= 1e-9


@pytest.mark.parametrize("finished", ["aside", "together"])
def test_texts_of_different_lengths(exact: Any, finished: str) -> None:
    complete = frozenset({(), (A,), (A, B), (B,)})
    truth = {text: probability(text) for text in complete}
    moments = _moments(exact, 3, complete=complete, finished=finished, ess_threshold=0.9)
    assert _deviation(moments, truth) <= 1e-9


def test_resampling_every_second_step(exact: Any) -> None:
    moments = _moments(exact, 2, resample_every=2, ess_threshold=1.0)
    assert _deviation(moments, TRUTH) <= 1e-9
    matcher = exact.matcher(exact.vocabulary(3, (END,)), frozenset({(A, A, A), (B, B, B)}))
    options: dict[str, Any] = {"particles": 8, "max_new_tokens": 4, "ess_threshold": 1.0}
    identity = tuple(range(8))
    every, third = (
        [
            smc.run(exact.rows(table, [()]), matcher, seed=s, resample_every=n, **options)
            for s in range(6)
        ]
        for n in (1, 3)
    )
    assert any(result.ancestry[1] != identity for result in every)
    assert all(result.ancestry[1] == identity for result in third)
    assert any(result.ancestry[2] != identity for result in third)


def test_potentials_twist_and_untwist(exact: Any) -> None:
    """A prefix value changes who is resampled and nothing else;
    a complete value is part of the target.
    """
    value = {b"aa": 0.3, b"ab": 2.0, b"bb": 0.5}
    guess = {b"": 0.7, b"a": 0.2, b"b": 3.0, b"aa": 0.1, b"ab": 5.0, b"bb": 1.0}
    potential = Potential(
        complete=lambda text: math.log(value[text]), prefix=lambda text: math.log(guess[text])
    )
    truth = {text: p * value[bytes(b"ab"[t] for t in text)] for text, p in TRUTH.items()}
    for options in ({"ess_threshold": 1.0}, {"ess_threshold": 0.0}, {"finished": "together"}):
        assert _deviation(_moments(exact, 2, potentials=[potential], **options), truth) <= 1e-9
    at_the_end = Potential(complete=potential.complete)
    assert _deviation(_moments(exact, 2, potentials=[at_the_end]), truth) <= 1e-9


def test_a_prefix_potential_that_is_not_divided_out_fails(exact: Any, monkeypatch: Any) -> None:
    def keep(particle: Particle, log_psi: float, reason: str) -> None:
        particle.log_weight += log_psi

    monkeypatch.setattr(Particle, "twist", keep)
    potential = Potential(complete=lambda text: 0.0, prefix=lambda text: 0.1 * len(text))
    assert _deviation(_moments(exact, 2, potentials=[potential]), TRUTH) > 1e-3


def test_resampling_that_keeps_old_weights_fails(exact: Any, monkeypatch: Any) -> None:
    original = Particle.copy
    monkeypatch.setattr(Particle, "copy", lambda p, i, w: original(p, i, p.log_weight))
    assert _deviation(_moments(exact, 2, ess_threshold=1.0), TRUTH) > 1e-3


def test_resampling_that_resets_weights_to_one_fails(exact: Any, monkeypatch: Any) -> None:
    original = Particle.copy
    monkeypatch.setattr(Particle, "copy", lambda p, i, w: original(p, i, 0.0))
    assert _deviation(_moments(exact, 2, ess_threshold=1.0), TRUTH) > 1e-3


def test_resampling_only_the_living_at_their_mean_fails(exact: Any, monkeypatch: Any) -> None:
    """The dead stay in N: leaving them out of the mean counts their mass twice."""

    def dies(prefix: tuple[int, ...]) -> Sequence[float]:
        return [0.5, 0.5, 0.0] if prefix == () else [0.4, 0.1, 0.5]

    potential = Potential(
        complete=lambda text: 0.0, prefix=lambda text: -math.inf if text == b"b" else 0.0
    )
    options: dict[str, Any] = {
        "table": dies, "potentials": [potential], "ess_threshold": 1.0,
        "complete": frozenset({(A, A), (B, B)}),
    }  # fmt: skip
    truth = {(A, A): 0.5 * 0.4 * 0.5}
    assert _deviation(_moments(exact, 2, **options), truth) <= 1e-9
    original = population.log_sum_exp
    monkeypatch.setattr(
        population, "log_sum_exp", lambda w: original(w) + math.log(w.size / np.isfinite(w).sum())
    )
    assert _deviation(_moments(exact, 2, **options), truth) > 1e-3


def test_masked_decoding_is_fooled_and_smc_is_not(exact: Any) -> None:
    """Total variation to the exact conditional law:
    masking's does not shrink, SMC's goes to 0 with N.
    """
    evidence = sum(TRUTH.values())
    exact_law = {text: p / evidence for text, p in TRUTH.items()}
    masked: dict[tuple[int, ...], float] = {}
    matcher = exact.matcher(exact.vocabulary(3, (END,)), COMPLETE)
    for text in COMPLETE:
        share, state = 1.0, ()
        for token in (*text, END):
            allowed = matcher._next(state)
            share *= table(state)[token] / sum(table(state)[t] for t in allowed)
            state = (*state, token)
        masked[text] = share
    distance = 0.5 * sum(abs(masked[t] - exact_law[t]) for t in COMPLETE)
    assert distance > 0.5
    errors = []
    for particles in (1, 10, 100, 1000):
        runs = []
        for seed in range(40):
            result = smc.run(
                exact.rows(table, [()]), matcher, particles=particles, max_new_tokens=3, seed=seed
            )
            posterior = result.posterior()
            names = {"".join("ab"[t] for t in text): p for text, p in exact_law.items()}
            runs.append(0.5 * sum(abs(posterior.get(n, 0.0) - p) for n, p in names.items()))
        errors.append(float(np.mean(runs)))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.03 < distance / 10
