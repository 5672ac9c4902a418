"""Particles over the engine: the same as over transformers' rows, and on the prefix cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from midstream.adapters.vllm import VllmHost
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.random import sequence_of
from midstream.middleware.segments import run_segments
from midstream.middleware.smc import run
from midstream.middleware.strategy import Strategy

CITY = "Guest 2179 picks a city:\n"
CITIES = {"regex": "San (Antonio|Marino)|Rome|Porto"}


def _strategy(every: int, particles: int = 8, seed: int = 0) -> Strategy:
    smc = {"particles": particles, "resample_every": every}
    return Strategy(constraint=CITIES, smc=smc, seed=seed, limits={"max_new_tokens": 12})


@pytest.fixture(scope="module")
def host(engine: Any) -> VllmHost:
    return VllmHost(engine)


@pytest.mark.parametrize("every", [1, 3, 16])
def test_particles_are_those_of_transformers(
    host: VllmHost, reference: Any, tokenizer: Any, every: int
) -> None:
    ids = tokenizer(CITY).input_ids
    for seed in range(5):
        strategy = _strategy(every, seed=seed)
        found = run_segments(host, ids, strategy, sequence=sequence_of(ids))
        matcher = strategy.build_constraint().compile(reference.vocabulary)
        rows = reference.start([ids])
        truth = run(rows, matcher, sequence=sequence_of(ids), **strategy.run_options())
        assert [p.token_ids for p in found.particles] == [p.token_ids for p in truth.particles]
        assert found.log_evidence == pytest.approx(truth.log_evidence, abs=1e-3)


def test_the_evidence_does_not_depend_on_resample_every(host: VllmHost, tokenizer: Any) -> None:
    ids = tokenizer(CITY).input_ids
    means = {}
    for every in (1, 16):
        evidence = [
            math.exp(run_segments(host, ids, _strategy(every, 4), sequence=sequence).log_evidence)
            for sequence in range(40)
        ]
        means[every] = np.mean(evidence), np.std(evidence) / math.sqrt(len(evidence))
    gap = abs(means[1][0] - means[16][0])
    assert gap < 4.5 * math.hypot(means[1][1], means[16][1])


def test_asking_again_counts_once(host: VllmHost, tokenizer: Any) -> None:
    """The same run, slot and segment: the records are written over, not added."""
    ids = tokenizer(CITY).input_ids
    strategy = _strategy(4)
    first, again = (
        run_segments(host, ids, strategy, sequence=1, run="one-run-for-a-test") for _ in range(2)
    )
    assert [p.log_weight for p in again.particles] == [p.log_weight for p in first.particles]


def test_cancelling_aborts_the_engine(host: VllmHost, engine: Any, tokenizer: Any) -> None:
    asked = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 4

    ids = tokenizer(CITY).input_ids
    result = run_segments(host, ids, _strategy(12), cancelled=cancelled)
    statuses = {particle.status for particle in result.particles}
    assert "cancelled" in statuses <= {"cancelled", "finished"}
    assert not engine.llm_engine.has_unfinished_requests()


def test_preparing_a_constraint(host: VllmHost) -> None:
    host.prepare(_strategy(1))
    with pytest.raises(StrategyError, match="does not"):
        host.prepare(Strategy(constraint={"grammar": "start: nowhere"}))


def test_more_generated_ids_than_a_prompt_has(engine: Any, generate: Any, ask: Any) -> None:
    from midstream.adapters.vllm.weights import by_sequence, read_records

    strategy = {"constraint": CITIES, "limits": {"max_new_tokens": 90}}
    params = ask(strategy, max_tokens=4)
    resume = {"run": "too-many-generated", "slot": 0, "segment": 0, "generated": 80, "sequence": 5}
    params.extra_args["midstream"]["resume"] = resume
    generate([CITY], params)
    (rows,) = read_records(engine, ["too-many-generated:0:0"])
    record = by_sequence(rows)[5][0]
    assert record.status == "dead"
    assert "resume.generated" in record.reason


def test_an_engine_without_the_extension_is_told_what_it_needs(make_engine: Any) -> None:
    class Without:
        llm_engine = None

        def collective_rpc(self, *arguments: Any, **named: Any) -> Any:
            raise AttributeError("midstream_records")

    with pytest.raises(InputError, match="worker_extension_cls"):
        VllmHost(Without())  # type: ignore[arg-type]
