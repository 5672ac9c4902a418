"""Real engines, on the CPU. `make test-vllm` runs this folder in an environment that has vLLM."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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

        named = {key: fields.pop(key) for key in ("id", "vocabulary") if key in fields}
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
