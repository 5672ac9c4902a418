"""Ten thousand real requests to a server of its own: neither memory nor descriptors grow.

`SOAK_REQUESTS` in the environment asks for more of them.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.sidecar.client import AsyncClient, RowOfStep
from midstream.middleware.vocabulary import Vocabulary

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "10000"))
WARM_UP = 2000
AT_A_TIME = 32
STEPS = 10
"""Of a stream, each of which counts as a request."""

MOST_GROWTH = 12.0
"""MiB: some times what the allocator comes and goes by."""

VOCABULARY = Vocabulary([b"a", b"b", b"ab", b""], eos_ids=[3])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's tokenizer with a model of one narrow layer."""
    folder = tmp_path_factory.mktemp("small")
    for file in embedded_model_path().iterdir():
        if file.suffix == ".json" and file.name.startswith("tokenizer"):
            (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def server(small: Path, tmp_path: Path) -> Iterator[tuple[psutil.Process, str]]:
    """A process, and where it listens."""
    path = tmp_path / "own" / "socket"
    options = ["--listen", "none", "--unix", str(path), "--allow-shared-memory"]
    options += ["--model", f"small={small}", "--log-level", "error"]
    command = [sys.executable, "-P", "-m", "midstream.adapters.cli", "serve", *options]
    # glibc keeps what one arena freed from the next one's threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield psutil.Process(process.pid), f"unix:{path}"
        finally:
            process.kill()


async def generate(client: AsyncClient, number: int) -> None:
    """A request in one of several ways, one of them wrong."""
    strategy = {
        "constraint": {"regex": ("[a-c]{1,3}", "[0-9]{2}", "(ab|ba)+")[number % 3]},
        "smc": {"particles": 1 + number % 3},
        "limits": {"max_new_tokens": 6},
        "seed": number,
    }
    if number % 50 == 0:
        with pytest.raises(ValueError):
            await client.generate("x", constraint={"regex": "("})
    else:
        told: list[object] = []
        on_event = told.append if number % 2 else None
        outcome = await client.generate("Once upon", strategy=strategy, on_event=on_event)
        assert outcome.particles and bool(told) == bool(number % 2)


async def stream(client: AsyncClient, number: int) -> None:
    """A stream of some steps, with or without shared memory."""
    strategy = {"constraint": {"regex": "(ab)+"}, "limits": {"max_new_tokens": 30}, "seed": number}
    options = {"strategy": strategy, "shared_rows": 2 * (number % 2)}
    logits = np.random.default_rng(number).normal(size=(2, 4)).astype(np.float32)
    logits[:, 3] = -9.0
    async with client.process(VOCABULARY, 4, **options) as process:
        for _ in range(STEPS):
            result = await process.step(logits, [RowOfStep(1), RowOfStep(2, sequence=2)])
            assert len(result.rows) == 2


async def requests(client: AsyncClient, begin: int, end: int) -> None:
    """Half of them generate, half are steps of streams."""
    numbers = iter(range(begin, end, 2 * STEPS))

    async def some() -> None:
        for number in numbers:
            await stream(client, number)
            for each in range(number, number + STEPS):
                await generate(client, each)

    await asyncio.gather(*[some() for _ in range(AT_A_TIME)])


@pytest.mark.slow
@pytest.mark.timeout(max(300, REQUESTS / 20))
def test_memory_and_descriptors_are_flat_over_real_requests(
    server: tuple[psutil.Process, str],
) -> None:
    process, address = server
    seen: list[tuple[int, int, float]] = []

    async def scenario() -> None:
        part = max(2000, REQUESTS // 8)
        async with AsyncClient(address) as client:
            for done in range(0, WARM_UP + REQUESTS, part):
                await requests(client, done, done + part)
                await asyncio.sleep(0.2)  # calls that just ended are put away
                memory = process.memory_info().rss / (1 << 20)
                seen.append((done + part, process.num_fds(), memory))

    asyncio.run(scenario())
    _, descriptors, memory = next(row for row in seen if row[0] >= WARM_UP)
    print("requests, descriptors, MiB:", *seen)  # shown by pytest -s
    assert seen[-1][1] <= descriptors, seen
    assert seen[-1][2] - memory < MOST_GROWTH, seen
