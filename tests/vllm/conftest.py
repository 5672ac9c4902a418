"""Real engines, on the CPU. `make test-vllm` runs this folder in an environment that has vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

# With a thread for each core, whatever else runs stops all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    VLLM_PLUGINS="midstream",
    HF_HUB_OFFLINE="1",
)
collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["*"]

PROCESSOR = "midstream.adapters.vllm:ConstrainedSampling"
EXTENSION = "midstream.adapters.vllm.WeightsExtension"
KEY = "a-key-of-the-tests"
CITY = "Guest 2179 picks a city:\n"


@pytest.fixture(scope="session")
def model_path() -> Path:
    from midstream.adapters.embedded import embedded_model_path

    return embedded_model_path()


@pytest.fixture(scope="session")
def make_engine(model_path: Path) -> Callable[..., Any]:
    """An engine in this process, with our processor unless it is told otherwise.

    All of them live as long as the session: the end of one takes the process groups of all.
    """
    alive = []

    def make(**options: Any) -> Any:
        from vllm import LLM

        settings: dict[str, Any] = {
            "model": str(model_path),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 512,
            "block_size": 32,
            "enable_prefix_caching": True,
            "distributed_executor_backend": "uni",
            "logits_processors": [PROCESSOR],
            "worker_extension_cls": EXTENSION,
            "disable_log_stats": True,
        }
        alive.append(LLM(**{**settings, **options}))
        return alive[-1]

    return make


@pytest.fixture(scope="session")
def engine(make_engine: Callable[..., Any]) -> Any:
    """The engine that most tests share."""
    return make_engine()


@pytest.fixture(scope="session")
def tokenizer(model_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="session")
def reference(model_path: Path, engine: Any) -> Any:
    """The same model in transformers, float32, with the engine's vocabulary."""
    from transformers import AutoModelForCausalLM

    from midstream.adapters.transformers import TransformersHost
    from midstream.adapters.vllm.vocabulary import engine_vocabulary

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype="float32")
    return TransformersHost(model, engine_vocabulary(engine.llm_engine.vllm_config))


@pytest.fixture(scope="session")
def ask() -> Callable[..., Any]:
    """SamplingParams with a strategy."""

    def params(strategy: dict[str, Any], **fields: Any) -> Any:
        from vllm import SamplingParams

        named = {key: fields.pop(key) for key in ("id", "vocabulary", "begun") if key in fields}
        asked = {"strategy": strategy, **named}
        return SamplingParams(**{"max_tokens": 24, **fields}, extra_args={"midstream": asked})

    return params


@pytest.fixture(scope="session")
def generate(engine: Any) -> Callable[..., Any]:
    """Run prompts, one set of parameters each."""

    def run(prompts: Sequence[Any], params: Any, on: Any = None) -> Any:
        return (on or engine).generate(prompts, params, use_tqdm=False)

    return run


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port of the loopback that nobody listens on."""

    def find() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port: int = listener.getsockname()[1]
            return port

    return find


@dataclass(frozen=True)
class Server:
    """An API server that runs, and how to ask it."""

    url: str
    key: str
    process: subprocess.Popen[bytes]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=self.headers, timeout=60, **options)

    def complete(self, strategy: Any, **fields: Any) -> httpx.Response:
        asked = {"strategy": strategy, **fields.pop("named", {})}
        body = {
            "prompt": CITY,
            "max_tokens": 24,
            "temperature": 1.0,
            "return_token_ids": True,
            "vllm_xargs": {"midstream": json.dumps(asked)},
            **fields,
        }
        return self.post("/v1/completions", body)


@pytest.fixture(scope="session")
def start(
    model_path: Path, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """Starts servers, each on a port of its own, and ends them."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*options: str) -> Server:
        port = free_port()
        log = (tmp_path_factory.mktemp("server") / "log").open("wb")
        command = [
            *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model_path), "--served-model-name", "zoo", "--dtype", "float32"),
            *("--enforce-eager", "--max-model-len", "512", "--block-size", "32"),
            *("--host", "127.0.0.1", "--port", str(port), "--api-key", KEY),
            *("--distributed-executor-backend", "uni", "--enable-prompt-tokens-details"),
            *("--logits-processors", "midstream.adapters.vllm:ConstrainedSampling"),
            *("--worker-extension-cls", "midstream.adapters.vllm.WeightsExtension", *options),
        ]
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
        log.close()
        running.append(process)
        server = Server(f"http://127.0.0.1:{port}", KEY, process)
        deadline = time.monotonic() + 280
        while time.monotonic() < deadline:
            assert process.poll() is None, Path(log.name).read_text()[-4000:]
            try:
                if httpx.get(server.url + "/health", timeout=2).status_code == 200:
                    return server
            except httpx.TransportError:
                time.sleep(0.3)
        raise AssertionError(Path(log.name).read_text()[-4000:])

    yield begin
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def server(start: Callable[..., Server]) -> Server:
    """The server that most tests share. It shows the probabilities of all tokens."""
    return start("--max-logprobs", "-1")
