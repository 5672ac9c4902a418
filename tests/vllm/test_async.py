"""Particles over a real `AsyncLLM`: the same texts, and cancellation that reaches the engine."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midstream.adapters.vllm import VllmHost
from midstream.adapters.vllm.weights import weights_async
from midstream.middleware.bytes import ByteModel
from midstream.middleware.bytes.healing import Healer
from midstream.middleware.errors import InputError
from midstream.middleware.random import sequence_of
from midstream.middleware.segments import run_segments
from midstream.middleware.smc import run
from midstream.middleware.strategy import Strategy

pytestmark = pytest.mark.timeout(300)
CITY = "Guest 2179 picks a city:\n"
CITIES = {"regex": "San (Antonio|Marino)|Rome|Porto"}
LONG = {"regex": "[a-z ]{300}"}
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def served(model_path: Path) -> Iterator[tuple[Any, Run]]:
    """An engine in a process of its own, and the event loop that it lives in."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        model=str(model_path),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        block_size=32,
        distributed_executor_backend="uni",
        logits_processors=["midstream.adapters.vllm:ConstrainedSampling"],
        worker_extension_cls="midstream.adapters.vllm.WeightsExtension",
        disable_log_stats=True,
        max_logprobs=-1,
    )

    async def start() -> Any:
        return AsyncLLM.from_engine_args(arguments)

    with asyncio.Runner() as runner:
        engine = runner.run(start())
        yield engine, runner.run
        engine.shutdown()


def _strategy(every: int = 4, seed: int = 0, constraint: Any = CITIES, limit: int = 12) -> Strategy:
    smc = {"particles": 6, "resample_every": every}
    return Strategy(constraint=constraint, smc=smc, seed=seed, limits={"max_new_tokens": limit})


def _particles(served: tuple[Any, Run], ids: list[int], strategy: Strategy, **options: Any) -> Any:
    engine, runs = served

    def work() -> Any:
        return run_segments(VllmHost(engine), ids, strategy, **options)

    async def beside() -> Any:
        return await asyncio.to_thread(work)

    return runs(beside())


@pytest.mark.parametrize("every", [1, 16])
def test_particles_are_those_of_transformers(
    served: tuple[Any, Run], reference: Any, tokenizer: Any, every: int
) -> None:
    ids = tokenizer(CITY).input_ids
    for seed in range(2):
        strategy = _strategy(every, seed)
        found = _particles(served, ids, strategy, sequence=sequence_of(ids))
        matcher = strategy.build_constraint().compile(reference.vocabulary)
        truth = run(
            reference.start([ids]), matcher, sequence=sequence_of(ids), **strategy.run_options()
        )
        assert [p.token_ids for p in found.particles] == [p.token_ids for p in truth.particles]
        assert found.log_evidence == pytest.approx(truth.log_evidence, abs=1e-3)


def _beside(served: tuple[Any, Run], work: Callable[[VllmHost], Any]) -> Any:
    """Work with a host, on another thread than the event loop's."""
    engine, runs = served

    async def beside() -> Any:
        return await asyncio.to_thread(lambda: work(VllmHost(engine)))

    return runs(beside())


def test_byte_laws_and_covers_are_those_of_transformers(
    served: tuple[Any, Run], reference: Any, tokenizer: Any
) -> None:
    prefixes = [b"ISO date of 20", b"ISO date of 2001, Apr", b'{"na', b"def retu", b"a\n\n"]
    reference.tokenizer = tokenizer
    there = ByteModel(reference)
    ours = [law.p for law in _beside(served, lambda host: ByteModel(host).laws(prefixes))]
    for prefix, law, expected in zip(prefixes, ours, there.laws(prefixes), strict=True):
        assert np.abs(law - expected.p).max() < 2e-5, prefix
        assert law.sum() == pytest.approx(1.0)
    # The test sees a difference: the law after another prefix is another.
    assert np.abs(ours[0] - ours[1]).max() > 1e-2
    cover = dict(_beside(served, lambda host: ByteModel(host).cover(prefixes[0])))
    expected_cover = dict(there.cover(prefixes[0]))
    assert cover.keys() == expected_cover.keys()
    assert all(abs(cover[ids] - log_p) < 1e-3 for ids, log_p in expected_cover.items())


def test_healing_draws_the_token_strings_of_transformers(
    served: tuple[Any, Run], reference: Any, tokenizer: Any
) -> None:
    prompts = [tokenizer(text).input_ids for text in ("Take 2", "Guest 2179 picks a ci")] * 4
    ours = _beside(served, lambda host: Healer(host, tokenizer).heal(prompts, seed=3))
    theirs = Healer(reference, tokenizer).heal(prompts, seed=3)
    same = sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True))
    assert same >= len(prompts) - 1  # an inverse CDF may flip where two models' noise crosses it
    assert not served[0].output_processor.has_unfinished_requests()


def test_hosts_read_beside_each_other(served: tuple[Any, Run], tokenizer: Any) -> None:
    """Requests of several hosts over one engine do not take each other's names."""
    engine, runs = served
    prompts = [tokenizer(text).input_ids for text in ("Take 2", CITY, "def retu")]

    def read(prompt: list[int]) -> Any:
        return VllmHost(engine).start([prompt] * 4).logits

    async def beside() -> Any:
        return await asyncio.gather(*(asyncio.to_thread(read, prompt) for prompt in prompts))

    for prompt, rows in zip(prompts, runs(beside()), strict=True):
        alone = _beside(served, lambda host, prompt=prompt: host.start([prompt]).logits)
        assert np.abs(np.exp(rows) - np.exp(alone)).max() < 2e-5


def test_weights_of_a_request(served: tuple[Any, Run], ask: Callable[..., Any]) -> None:
    from vllm.sampling_params import RequestOutputKind

    engine, runs = served
    # While it streams an output holds those texts alone that have grown.
    params = ask({"constraint": CITIES}, n=3, output_kind=RequestOutputKind.FINAL_ONLY)

    async def asked() -> Any:
        last = None
        async for output in engine.generate(CITY, params, "one-request"):
            last = output
        return await weights_async(engine, last, params)

    texts = runs(asked())
    assert [text.status for text in texts] == ["finished"] * 3


@pytest.mark.parametrize("ends", ["cancelled", "deadline"])
def test_cancelling_and_deadlines_reach_the_engine(
    served: tuple[Any, Run], tokenizer: Any, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    engine, _ = served
    aborted: list[str] = []
    abort = engine.engine_core.abort_requests_async

    async def noting(names: list[str]) -> None:
        aborted.extend(names)
        await abort(names)

    monkeypatch.setattr(engine.engine_core, "abort_requests_async", noting)
    begin, asked = time.monotonic(), []

    def enough() -> bool:
        asked.append(1)
        return len(asked) > 3 if ends == "cancelled" else time.monotonic() > begin + 0.3

    strategy = _strategy(400, constraint=LONG, limit=400)
    result = _particles(served, tokenizer(CITY).input_ids, strategy, cancelled=enough)
    assert {particle.status for particle in result.particles} == {"cancelled"}
    assert len(aborted) == 6
    assert not engine.output_processor.has_unfinished_requests()


def test_the_thread_of_the_event_loop_is_refused(served: tuple[Any, Run]) -> None:
    engine, runs = served

    async def in_the_loop() -> Any:
        return VllmHost(engine)

    with pytest.raises(InputError, match="to_thread"):
        runs(in_the_loop())


def test_an_engine_that_dies_is_an_error(served: tuple[Any, Run], tokenizer: Any) -> None:
    """Last in this file: nothing is left of the engine afterwards."""
    from vllm.v1.engine.exceptions import EngineDeadError

    engine, _ = served
    segments = 0

    def kill_at_the_second(particles: Any) -> None:
        nonlocal segments
        segments += 1
        if segments == 2:
            (process,) = engine.engine_core.resources.engine_manager.processes
            os.kill(process.pid, signal.SIGKILL)

    begin = time.monotonic()
    strategy = _strategy(4, constraint=LONG, limit=400)
    with pytest.raises(EngineDeadError):
        _particles(served, tokenizer(CITY).input_ids, strategy, on_segment=kill_at_the_second)
    assert time.monotonic() - begin < 60
