"""One step of LogitsProcessing with a row of 128,256 float32 logits, beside the least it can take.

That is a bare gRPC echo on the same kind of stream (of 100 bytes where the logits lie in shared
memory, of the same bytes where they travel) and the draw itself, in process. All take turns: the
streams of one kind make their steps, then those of the next.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from benchmarks.report import Cell, Table, arguments, show
from benchmarks.timing import no_collection
from midstream.adapters.sidecar.client import AsyncClient, RowOfStep
from midstream.middleware.budget import within_budget
from midstream.middleware.constraints import Regex
from midstream.middleware.random import Stream
from midstream.middleware.sampling import Mask
from midstream.middleware.vocabulary import Vocabulary

SIZE = 128_256
PATTERN = "[a-z ]*"
TOKENS = 4_096
STREAMS = (1, 8, 64)
ECHO = "/benchmark.Echo/Echo"
OPTIONS = [("grpc.max_receive_message_length", 1 << 24), ("grpc.max_send_message_length", 1 << 24)]

Step = Callable[[int], Awaitable[object]]
"""One step of one stream; its argument is the number of the step."""


def vocabulary() -> Vocabulary:
    """Bytes, and words of letters, digits and spaces."""
    noise = np.random.default_rng(0)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz 0123456789", np.uint8)
    words = dict.fromkeys(bytes([byte]) for byte in range(256))
    while len(words) < SIZE - 1:
        words[noise.choice(letters, noise.integers(2, 9)).tobytes()] = None
    return Vocabulary([*words, b""], eos_ids=[SIZE - 1])


def row() -> npt.NDArray[np.float32]:
    """Logits that hardly ever end a text."""
    logits = np.random.default_rng(1).normal(scale=3.0, size=SIZE).astype(np.float32)
    logits[-1] = -30.0
    return logits


async def serve(folder: Path) -> None:
    """The sidecar, and an echo on a bare server, each at a Unix socket."""
    from midstream.adapters.sidecar.logits_processing_service import logits_processing
    from midstream.adapters.sidecar.server import Sidecar
    from midstream.adapters.sidecar.settings import ServerSettings

    async def echo(requests: AsyncIterator[bytes], context: Any) -> None:
        async for request in requests:
            await context.write(request)

    known = vocabulary()
    settings = ServerSettings(
        listen=None, unix=True, unix_path=folder / "sidecar" / "socket", allow_shared_memory=True
    )
    sidecar = Sidecar(settings, lambda runtime: [logits_processing(runtime, lambda: [known])])
    await sidecar.start()
    bare = grpc.aio.server(options=OPTIONS)
    service, _, method = ECHO[1:].partition("/")
    handlers = {method: grpc.stream_stream_rpc_method_handler(echo)}
    bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    bare.add_insecure_port(f"unix:{folder}/echo")
    await bare.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await bare.stop(0)
    await sidecar.drain(0.0)


@asynccontextmanager
async def echoed(
    channel: grpc.aio.Channel, data: bytes, draw: Callable[[int], object]
) -> AsyncIterator[Step]:
    """Steps that echo some bytes, then draw in process."""
    method: Any = channel.stream_stream  # its published type wants serialisers
    call = method(ECHO)()

    async def step(number: int) -> None:
        await call.write(data)
        await call.read()
        draw(number)

    yield step
    call.cancel()


@asynccontextmanager
async def processed(client: AsyncClient, known: Vocabulary, *, shared: bool) -> AsyncIterator[Step]:
    """Steps of a stream of the sidecar."""
    logits = row()[None]
    strategy = {
        "constraint": {"regex": PATTERN},
        "sampler": "mask",
        "limits": {"max_new_tokens": TOKENS},
    }
    stream = client.process(known, SIZE, strategy=strategy, shared_rows=1 if shared else 0)
    async with stream:
        if shared:  # an engine writes its logits there in the first place
            stream.buffer[:] = logits
            logits = stream.buffer

        async def step(number: int) -> None:
            result = await stream.step(logits, [RowOfStep(1)])
            assert result.rows[0].status == "running"

        yield step


def drawer(known: Vocabulary) -> Callable[[int], object]:
    """The draw in process."""
    matcher = within_budget(Regex(PATTERN).compile(known), TOKENS)
    logits = row()
    sampler = Mask()
    state = matcher.start()

    def draw(number: int) -> object:
        nonlocal state
        drawn = sampler.draw(logits, matcher, state, Stream(0, 1, number))
        state = matcher.advance(state, drawn.token) or matcher.start()
        return drawn

    return draw


async def measure(
    folder: Path, known: Vocabulary, streams: int, *, rounds: int, block: int
) -> dict[str, list[float]]:
    """Microseconds of every step, of each kind."""
    async with AsyncExitStack() as stack:
        channel = grpc.aio.insecure_channel(f"unix:{folder}/echo", OPTIONS)
        await stack.enter_async_context(channel)
        client = await stack.enter_async_context(AsyncClient(f"unix:{folder}/sidecar/socket"))

        async def several(make: Callable[[], Any]) -> list[Step]:
            return [await stack.enter_async_context(make()) for _ in range(streams)]

        data = row().tobytes()
        kinds = {
            "echo 100 B + draw": await several(lambda: echoed(channel, data[:100], drawer(known))),
            "shared memory": await several(lambda: processed(client, known, shared=True)),
            "echo 513 kB + draw": await several(lambda: echoed(channel, data, drawer(known))),
            "inline": await several(lambda: processed(client, known, shared=False)),
        }
        taken: dict[str, list[float]] = {name: [] for name in kinds}

        async def steps(step: Step, begin: int, sink: list[float]) -> None:
            for number in range(begin, begin + block):
                start = time.perf_counter()
                await step(number)
                sink.append(1e6 * (time.perf_counter() - start))

        with no_collection():
            for turn in range(rounds + 1):
                for name, of_kind in kinds.items():
                    sink = taken[name] if turn else []  # the first round warms up
                    tasks = (steps(step, turn * block, sink) for step in of_kind)
                    await asyncio.gather(*tasks)
        return taken


def table(streams: int, taken: dict[str, list[float]]) -> Table:
    """Percentiles, and the ratios that there are targets for."""
    rows: list[list[Cell]] = []
    for name, us in taken.items():
        rows.append([name, *(float(np.percentile(us, at)) for at in (50, 95, 99))])
    for name, base in (
        ("shared memory", "echo 100 B + draw"),
        ("inline", "echo 513 kB + draw"),
    ):
        ours, theirs = taken[name], taken[base]
        ratios = (float(np.percentile(ours, at) / np.percentile(theirs, at)) for at in (50, 95, 99))
        rows.append([f"{name} / ({base})", *ratios])
    title = f"{streams} streams, a step of one row of {SIZE:,} float32 logits, microseconds"
    return Table(title, ["step", "p50", "p95", "p99"], rows)


async def run(folder: Path, streams: tuple[int, ...], *, quick: bool) -> list[Table]:
    """A table for each number of streams."""
    known, tables = vocabulary(), []
    for count in streams:
        rounds = 3 if quick else 30
        block = max(2, (20 if quick else 40) // count)
        taken = await measure(folder, known, count, rounds=rounds, block=block)
        tables.append(table(count, taken))
    return tables


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "benchmarks.sidecar_step", "--serve", name]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        ) as server:
            assert server.stdin is not None and server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            tables = asyncio.run(run(folder, tuple(options.streams), quick=options.quick))
            server.stdin.close()
    show(tables, as_json=options.json)


if __name__ == "__main__":
    main()
