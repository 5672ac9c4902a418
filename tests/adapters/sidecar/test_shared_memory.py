"""Regions: what may be opened, what is read, and clients that change them under the server."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.adapters.sidecar.client import AsyncClient, RowOfStep, SidecarError
from midstream.adapters.sidecar.client.region import Region
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.logits_processing_service import logits_processing
from midstream.adapters.sidecar.server import Sidecar
from midstream.adapters.sidecar.shared_memory import FOLDER, RegionOf, Regions
from midstream.adapters.sidecar.wire.strategy import strategy_message
from midstream.middleware.errors import InputError
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import logits_processing_pb2 as pb
from midstream.proto.v1 import tensor_pb2

VOCABULARY = Vocabulary([b"a", b"b", b"ab", b"ba", b"aab", b"", b""], eos_ids=[5, 6])
ROW = 9
STRATEGY: dict[str, Any] = {"constraint": {"regex": "(ab|ba)+"}, "seed": 7}

Run = Callable[[Awaitable[Any]], Any]
Serve = Callable[..., AbstractAsyncContextManager[Sidecar]]

pytestmark = pytest.mark.skipif(not Path(FOLDER).is_dir(), reason="no shared memory here")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """In the place of /dev/shm."""
    (tmp_path / "good").write_bytes(bytes(range(64)))
    return tmp_path


def opened(folder: Path, *named: tuple[str, str, int], most_bytes: int = 64) -> Regions:
    regions = [RegionOf(*each) for each in named]
    return Regions(regions, most=2, most_bytes=most_bytes, folder=str(folder))


def test_a_region_is_read_by_copies_of_what_it_holds_now(folder: Path) -> None:
    before = descriptors()
    regions = opened(folder, ("a", "good", 64))
    assert bytes(regions.read("a", 3, 4)) == bytes([3, 4, 5, 6])
    (folder / "good").write_bytes(bytes(64))
    view = regions.read("a", 60, 4)
    assert bytes(view) == bytes(4)
    (folder / "good").write_bytes(bytes([9]) * 64)
    assert bytes(view) == bytes(4)  # a copy, whatever the client does
    (folder / "good").unlink()
    assert bytes(regions.read("a", 0, 64)) == bytes([9]) * 64
    regions.close()
    regions.close()
    assert descriptors() == before


@pytest.mark.parametrize(
    ("field", "region"),
    [
        ("key", ("a", "../good", 64)),
        ("key", ("a", "no/good", 64)),
        ("key", ("a", "", 64)),
        ("key", ("a", ".", 64)),
        ("key", ("a", "good\0", 64)),
        ("key", ("a", "g\u00f6\u00f6d", 64)),
        ("key", ("a", "x" * 201, 64)),
        ("key", ("a", "absent", 64)),
        ("key", ("a", "link", 64)),
        ("key", ("a", "pipe", 64)),
        ("key", ("a", "folder", 64)),
        ("name", ("", "good", 64)),
        ("size_bytes", ("a", "good", 0)),
        ("size_bytes", ("a", "good", 65)),
        ("size_bytes", ("a", "large", 1 << 40)),
    ],
)
def test_what_is_no_region_is_refused_by_its_field(
    field: str, region: tuple[str, str, int], folder: Path
) -> None:
    (folder / "link").symlink_to(folder / "good")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "large").write_bytes(bytes(100))
    before = descriptors()
    with pytest.raises(InputError) as raised:
        opened(folder, region)
    assert raised.value.argument == f"handshake.regions[0].{field}"
    assert descriptors() == before


def test_a_file_that_is_shorter_than_it_says_is_refused(folder: Path) -> None:
    with pytest.raises(InputError) as raised:
        opened(folder, ("a", "good", 65), most_bytes=100)
    assert raised.value.argument == "handshake.regions[0].size_bytes"


def test_another_user_s_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(InputError) as raised:
        opened(folder, ("a", "good", 64))
    assert raised.value.argument == "handshake.regions[0].key"


def test_regions_are_few_and_their_names_differ(folder: Path) -> None:
    before = descriptors()
    for named in (
        [("a", "good", 64), ("a", "good", 64)],
        [("a", "good", 64), ("b", "good", 64), ("c", "good", 64)],
    ):
        with pytest.raises(InputError):
            opened(folder, *named)
    assert descriptors() == before


def test_a_place_must_lie_inside_and_a_region_must_keep_its_size(folder: Path) -> None:
    regions = opened(folder, ("a", "good", 64))
    for field, (region, offset, size) in {
        "region": ("b", 0, 1),
        "offset": ("a", 61, 4),
    }.items():
        with pytest.raises(InputError) as raised:
            regions.read(region, offset, size)
        assert raised.value.argument == f"step.logits.shared_memory.{field}"
    with pytest.raises(InputError):
        regions.read("a", 1 << 63, 4)
    os.truncate(folder / "good", 10)
    with pytest.raises(InputError, match="shorter"):
        regions.read("a", 8, 4)
    assert bytes(regions.read("a", 6, 4)) == bytes([6, 7, 8, 9])
    regions.close()
    with pytest.raises(InputError):
        regions.read("a", 0, 1)


def test_closing_waits_for_a_read_and_no_read_follows(folder: Path) -> None:
    """Negative control of the lock: a number that is free again may be anybody's file."""
    (folder / "large").write_bytes(bytes(8 << 20))
    for _ in range(20):
        regions = opened(folder, ("a", "large", 8 << 20), most_bytes=8 << 20)
        failures: list[Exception] = []

        def read(regions: Regions = regions, failures: list[Exception] = failures) -> None:
            try:
                while True:
                    regions.read("a", 0, 8 << 20)
            except InputError:
                pass
            except Exception as error:
                failures.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        regions.close()
        reader.join(10)
        assert not reader.is_alive() and not failures


def test_what_a_client_makes_is_private_and_goes_away() -> None:
    region = Region(2, 3, np.dtype("<f4"))
    path = Path(FOLDER) / region.key
    status = path.stat()
    assert (status.st_mode & 0o777, status.st_size, status.st_uid) == (0o600, 24, os.geteuid())
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert region.place(logits) == 0
    assert path.read_bytes() == logits.tobytes()
    region.array[1] = 7.0
    assert region.place(region.array[1:]) == 12  # it lies there already
    assert path.read_bytes()[12:] == np.full(3, 7.0, np.float32).tobytes()
    region.unlink()
    assert not path.exists()
    region.close()


@pytest.fixture
def leftovers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No region that was made here stays in /dev/shm."""
    made: list[str] = []
    token_hex = secrets.token_hex

    def recorded(size: int) -> str:
        made.append(token_hex(size))
        return made[-1]

    monkeypatch.setattr(secrets, "token_hex", recorded)
    yield
    names = os.listdir(FOLDER)
    assert not [name for name in names if any(each in name for each in made)]


def served(serve: Serve, **settings: Any) -> AbstractAsyncContextManager[Sidecar]:
    chosen = {"allow_shared_memory": True, **settings}
    return serve(lambda runtime: [logits_processing(runtime, lambda: [VOCABULARY])], **chosen)


def logits_of(number: int, rows: int = 2) -> np.ndarray:
    noise = np.random.default_rng(number)
    return noise.normal(size=(rows, ROW), scale=2.0).astype(np.float32)


@pytest.mark.usefixtures("leftovers")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_steps_are_those_of_inline_bytes(dtype: Any, serve: Serve, in_loop: Run) -> None:
    async def remote() -> None:
        async with served(serve) as sidecar, AsyncClient(sidecar.addresses[0]) as client:
            options: Any = {"strategy": STRATEGY, "dtype": dtype, "answer": "logits"}
            inline = client.process(VOCABULARY, ROW, **options)
            shared = client.process(VOCABULARY, ROW, **options, shared_rows=2)
            async with inline, shared:
                region = shared._session.region
                assert region is not None and region.key not in os.listdir(FOLDER)
                tokens: list[int | None] = [None, None]
                for number in range(3):
                    rows = [RowOfStep(i, tokens[i], i) for i in (0, 1)]
                    one = await inline.step(logits_of(number), rows)
                    other = await shared.step(logits_of(number), rows)
                    assert one.rows == other.rows
                    assert one.logits is not None and other.logits is not None
                    np.testing.assert_array_equal(one.logits, other.logits)
                    if any(each.status != "running" for each in one.rows):
                        break
                    tokens = [int(each.argmax()) for each in one.logits]
                    assert number < 2

    in_loop(remote())


@pytest.mark.usefixtures("leftovers")
def test_regions_of_streams_that_never_begin_go_away(serve: Serve, in_loop: Run) -> None:
    async def remote() -> None:
        async with served(serve) as sidecar, AsyncClient(sidecar.addresses[0]) as client:
            client.process(VOCABULARY, ROW, shared_rows=1)  # not entered
            for wrong in ({"row_size": 1}, {"row_size": ROW, "eos_ids": [99]}):
                options: Any = {"vocabulary": VOCABULARY, "shared_rows": 1, **wrong}
                with pytest.raises(InputError):
                    await client.process(**options).__aenter__()
            left = client.process(VOCABULARY, ROW, strategy=STRATEGY, shared_rows=1)
            left._session.handshake(upload=False)
            del left
            gc.collect()

    in_loop(remote())


@pytest.mark.usefixtures("leftovers")
@pytest.mark.parametrize("size", [0, 40])
def test_a_region_that_shrinks_ends_its_stream_and_the_server_lives(
    size: int, serve: Serve, in_loop: Run
) -> None:
    path = Path(FOLDER) / f"midstream-test-{os.getpid()}"
    strategy = strategy_message(Strategy(**STRATEGY))
    shape = [2, ROW]
    handshake = pb.Handshake(
        protocol_version=1,
        vocabulary_fingerprint=VOCABULARY.fingerprint,
        row_size=ROW,
        dtype=tensor_pb2.DTYPE_FLOAT32,
        strategy=strategy,
        answer=pb.ANSWER_TOKEN,
        regions=[pb.Region(name="a", key=path.name, size_bytes=8 * ROW)],
    )
    place = tensor_pb2.SharedMemory(region="a")
    logits = tensor_pb2.Tensor(dtype=handshake.dtype, shape=shape, shared_memory=place)
    rows = [pb.SequenceRow(id=0), pb.SequenceRow(id=1)]

    async def remote() -> None:
        async with served(serve) as sidecar, AsyncClient(sidecar.addresses[0]) as client:
            call = client._open()
            await call.send(pb.ProcessRequest(handshake=handshake))
            assert (await call.receive()).ready.sampler == "mask"
            for number in (0, 1):
                step = pb.Step(number=number, rows=rows, logits=logits)
                await call.send(pb.ProcessRequest(step=step))
                if number == 0:
                    assert len((await call.receive()).result.rows) == 2
                    os.truncate(path, size)
            with pytest.raises(InputError) as raised:
                await call.receive()
            assert raised.value.argument == "step.logits.shared_memory.region"
            async with client.process(VOCABULARY, ROW, strategy=STRATEGY) as stream:
                assert (await stream.step(logits_of(0), [RowOfStep(0), RowOfStep(1)])).rows

    path.write_bytes(logits_of(0).tobytes())
    try:
        in_loop(remote())
    finally:
        path.unlink()


@pytest.mark.parametrize("settings", [{"allow_shared_memory": False}, {"tcp": True}])
def test_regions_are_taken_where_they_are_allowed_and_over_unix_sockets_alone(
    settings: dict[str, Any], serve: Serve, in_loop: Run
) -> None:
    chosen: dict[str, Any] = settings
    if "tcp" in settings:
        chosen = {"listen": TcpAddress("127.0.0.1", 0), "unix": False}

    async def remote() -> None:
        async with served(serve, **chosen) as sidecar, AsyncClient(sidecar.addresses[0]) as client:
            options: Any = {"strategy": STRATEGY, "shared_rows": 1}
            with pytest.raises(InputError) as raised:
                async with client.process(VOCABULARY, ROW, **options):
                    pass
            assert raised.value.argument == "handshake.regions"

    in_loop(remote())


def test_descriptors_do_not_grow_with_streams(serve: Serve, in_loop: Run) -> None:
    async def remote() -> tuple[int, int]:
        limits = Limits(region_bytes=1 << 20)
        async with (
            served(serve, limits=limits) as sidecar,
            AsyncClient(sidecar.addresses[0]) as client,
        ):
            counts = []
            for number in range(60):
                options: Any = {"strategy": STRATEGY, "shared_rows": 2}
                async with client.process(VOCABULARY, ROW, **options) as stream:
                    rows = [RowOfStep(0), RowOfStep(1)]
                    await stream.step(logits_of(number), rows)
                with pytest.raises(InputError):
                    await client.process(VOCABULARY, ROW, shared_rows=1 << 16).__aenter__()
                if number in (9, 59):
                    await asyncio.sleep(0.1)
                    counts.append(descriptors())
            return counts[0], counts[1]

    first, last = in_loop(remote())
    assert last <= first + 2


def test_a_server_that_is_not_there_is_told_as_such(in_loop: Run, tmp_path: Path) -> None:
    async def remote() -> None:
        async with AsyncClient(f"unix:{tmp_path}/nothing") as client:
            with pytest.raises(SidecarError) as raised:
                await client.process(VOCABULARY, ROW, shared_rows=1).__aenter__()
            assert raised.value.code == "UNAVAILABLE"

    in_loop(remote())
