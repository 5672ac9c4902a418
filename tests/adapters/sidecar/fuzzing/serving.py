"""A server in this process, and who sends it things."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import hypothesis
from fuzzing.calls import Target, fuzz_generate
from fuzzing.conversations import fuzz_process
from fuzzing.protos import REGION, REGION_BYTES
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.sidecar.assembly import sidecar
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.middleware.vocabulary import Vocabulary

BOUNDS = Limits(
    particles=8, max_new_tokens=24, prompt_bytes=4096, sequences=8, rejects=256, regions=2
)
"""Small ones, so that both sides of each are met."""

FUZZ = {"generate": fuzz_generate, "process": fuzz_process}


@contextmanager
def running(folder: Path) -> Iterator[Target]:
    """A server with everything, in an event loop on a thread of its own."""
    settings = ServerSettings(
        listen=None,
        unix=True,
        unix_path=folder / "own" / "socket",
        allow_shared_memory=True,
        limits=BOUNDS,
    )
    told: dict[str, Any] = {}
    ready = threading.Event()

    async def serve() -> None:
        try:
            server = sidecar(settings, {"embedded": "embedded"})
            await server.start()
            told.update(server=server, loop=asyncio.get_running_loop(), at=server.addresses[0])
        finally:
            ready.set()
        await server.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(120) and told
    vocabulary = Vocabulary.from_tokenizer(embedded_model_path())
    Path("/dev/shm", REGION).write_bytes(bytes(REGION_BYTES))
    try:
        with grpc.insecure_channel(told["at"]) as channel:
            yield Target(channel, vocabulary.token_bytes)
    finally:
        Path("/dev/shm", REGION).unlink()
        asyncio.run_coroutine_threadsafe(told["server"].drain(0.0), told["loop"]).result(60)
        thread.join(60)


def fuzzer(target: Target, kind: str, phases: Sequence[Phase] = tuple(Phase)) -> Any:
    """The test of hypothesis."""

    @hypothesis.settings(
        max_examples=50,
        phases=phases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(st.data())
    def one(data: st.DataObject) -> None:
        FUZZ[kind](target, data)

    return one
