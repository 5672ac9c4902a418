"""`midstream serve --vllm-url`: Generate over gRPC, whose model is a real vLLM server's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from midstream.adapters.sidecar.client import Client, SidecarError, TokensEvent
from midstream.adapters.sidecar.wire.results import ResamplingEvent
from midstream.adapters.vllm import VllmServerHost
from midstream.middleware.bytes import ByteModel
from midstream.middleware.errors import ConstraintError, StrategyError
from midstream.middleware.random import sequence_of
from midstream.middleware.smc import run
from midstream.middleware.strategy import Strategy

pytestmark = pytest.mark.timeout(600)
KEY = "a-key-of-the-tests"
CITY = "Guest 2179 picks a city:\n"
REGEX = {"constraint": {"regex": "San (Antonio|Marino)|Rome|Porto"}}


@pytest.fixture(scope="module")
def engine_process(
    model_path: Path, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A vLLM server, and where it is."""
    url = f"http://127.0.0.1:{free_port()}"
    log = tmp_path_factory.mktemp("engine") / "log"
    command = [
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model_path), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "512", "--block-size", "32", "--api-key", KEY),
        *("--host", "127.0.0.1", "--port", url.rpartition(":")[2]),
        *("--distributed-executor-backend", "uni"),
        *("--logits-processors", "midstream.adapters.vllm:ConstrainedSampling"),
        *("--worker-extension-cls", "midstream.adapters.vllm.WeightsExtension"),
    ]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, env=environment, stdout=sink, stderr=sink, cwd="/", start_new_session=True
        )
    try:
        _wait_healthy(url, process, log)
        yield url, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(url + "/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    raise AssertionError(log.read_text()[-4000:])


@pytest.fixture(scope="module")
def client(
    engine_process: tuple[str, subprocess.Popen[bytes]],
    model_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    """A client of `midstream serve` beside the engine."""
    folder = tmp_path_factory.mktemp("sidecar")
    key = folder / "key"
    key.write_text(KEY + "\n")
    options = ["--listen", "none", "--unix", str(folder / "own" / "socket")]
    options += ["--vllm-url", engine_process[0], "--vllm-tokenizer", str(model_path)]
    options += ["--vllm-key-file", str(key), "--limit", "engine_requests=4"]
    command = [sys.executable, "-P", "-m", "midstream.adapters.cli", "serve", *options]
    log = folder / "log"
    with (
        log.open("w") as sink,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=sink, text=True, env=os.environ
        ) as server,
    ):
        try:
            assert server.stdout is not None and server.stdout.readline(), log.read_text()
            with Client(f"unix:{folder}/own/socket") as client:
                yield client
        finally:
            server.terminate()
            server.wait(60)


def test_the_model_is_the_engine_s(client: Client, tokenizer: Any) -> None:
    (model,) = client.models()
    assert (model.model, model.host, model.max_tokens) == ("vllm", "vllm", 512)
    assert model.vocabulary_size == len(tokenizer)


@pytest.mark.parametrize("every", [1, 4])
def test_particles_are_those_of_transformers_and_told_by_segment(
    client: Client, reference: Any, tokenizer: Any, every: int
) -> None:
    ids = tokenizer(CITY).input_ids
    for seed in range(2):
        smc = {"particles": 6, "resample_every": every, "ess_threshold": 0.9}
        strategy = Strategy(**REGEX, smc=smc, seed=seed, limits={"max_new_tokens": 12})
        events: list[Any] = []
        found = client.generate(CITY, strategy=strategy, on_event=events.append)
        matcher = strategy.build_constraint().compile(reference.vocabulary)
        truth = run(
            reference.start([ids]), matcher, sequence=sequence_of(ids), **strategy.run_options()
        )
        assert [p.token_ids for p in found.particles] == [p.token_ids for p in truth.particles]
        assert found.log_evidence == pytest.approx(truth.log_evidence, abs=1e-3)
        told: dict[int, tuple[int, ...]] = dict.fromkeys(range(6), ())
        for event in events:
            if isinstance(event, ResamplingEvent):
                told = {i: told[a] for i, a in enumerate(event.ancestors)}
            elif isinstance(event, TokensEvent):
                for each in event.tokens:
                    told[each.particle] += (each.token,)
        assert list(told.values()) == [p.token_ids for p in found.particles]
        assert sum(isinstance(event, TokensEvent) for event in events) >= 3


def test_calls_beside_each_other(client: Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def call(seed: int) -> Any:
        data = {**REGEX, "smc": {"particles": 3, "resample_every": 8}, "seed": seed % 2}
        return client.generate(CITY, strategy={**data, "limits": {"max_new_tokens": 12}})

    with ThreadPoolExecutor(8) as threads:
        found = [*threads.map(call, range(8))]
    for each in found[2:]:
        twin = found[found.index(each) % 2]
        assert [p.token_ids for p in each.particles] == [p.token_ids for p in twin.particles]


@pytest.mark.parametrize(
    ("strategy", "raised", "argument"),
    [
        ({"constraint": {"regex": "("}}, ConstraintError, "strategy.constraint.regex"),
        ({"law": {"temperature": 0}}, StrategyError, "strategy.law.temperature"),
        ({"limits": {"max_new_tokens": 600}}, StrategyError, "strategy.limits.max_new_tokens"),
        ({"sampler": {"awrs": {}}}, StrategyError, "strategy.sampler.awrs.rejects"),
    ],
)
def test_what_cannot_be_done_names_the_field(
    client: Client, strategy: Any, raised: type[Exception], argument: str
) -> None:
    with pytest.raises(raised) as caught:
        client.generate(CITY, strategy=strategy)
    assert getattr(caught.value, "argument", "").endswith(argument.removeprefix("strategy."))


def test_byte_laws_of_a_server_that_hides_probabilities_name_its_flag(
    engine_process: tuple[str, subprocess.Popen[bytes]], tokenizer: Any
) -> None:
    """The engine here was started without it."""
    with (
        VllmServerHost(engine_process[0], tokenizer, api_key=KEY) as host,
        pytest.raises(StrategyError, match="start the server with --max-logprobs -1"),
    ):
        ByteModel(host).laws([b"ISO date", b"Take 2"])


def test_a_deadline_ends_the_engine_s_work(client: Client) -> None:
    strategy = {
        "constraint": {"regex": "[a-z ]*z{300}"},
        "smc": {"particles": 4, "resample_every": 400},
        "limits": {"max_new_tokens": 400},
    }
    begin = time.monotonic()
    with pytest.raises(SidecarError) as caught:
        client.generate("Once", strategy=strategy, timeout_seconds=1)
    assert caught.value.code == "DEADLINE_EXCEEDED" and time.monotonic() - begin < 5
    assert client.generate(CITY, strategy=REGEX).status == "finished"


def test_an_engine_that_dies_is_unavailable(
    client: Client, engine_process: tuple[str, subprocess.Popen[bytes]]
) -> None:
    os.killpg(engine_process[1].pid, signal.SIGKILL)
    engine_process[1].wait()
    with pytest.raises(SidecarError) as caught:
        client.generate(CITY, strategy=REGEX, timeout_seconds=60)
    assert caught.value.code == "UNAVAILABLE" and "127.0.0.1" not in str(caught.value)
    assert [model.model for model in client.models()] == ["vllm"]
