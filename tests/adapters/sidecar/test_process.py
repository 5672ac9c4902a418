"""LogitsProcessing against a real server: the same draws as in process, and every bad message."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.sidecar import admission, process_handshake, vocabularies
from midstream.adapters.sidecar.admission import Prepared
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.logits_processing_service import LogitsProcessing, logits_processing
from midstream.adapters.sidecar.server import Sidecar
from midstream.adapters.sidecar.wire.strategy import strategy_message
from midstream.adapters.sidecar.wire.tensors import DTYPES, array_from, tensor_of
from midstream.kernels.bitmask import unpack_mask
from midstream.logits_processors import ConstrainedSampling
from midstream.logits_processors.constrained_sampling import UncheckedLawWarning
from midstream.middleware.constraints import Predicate, Regex
from midstream.middleware.random import sequence_of
from midstream.middleware.sampling import AWRS
from midstream.middleware.smc import run
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import logits_processing_pb2 as pb
from midstream.proto.v1 import logits_processing_pb2_grpc as rpc
from midstream.proto.v1 import tensor_pb2
from midstream.proto.v1.status_pb2 import SequenceStatus

VOCABULARY = Vocabulary([b"a", b"b", b"ab", b"ba", b"aab", b"", b""], eos_ids=[5, 6])
ROW = 9
REGEX = "(ab|ba)+"
DATA: dict[str, Any] = {"constraint": {"regex": REGEX}, "seed": 7, "limits": {"max_new_tokens": 6}}

Run = Callable[[Awaitable[Any]], Any]
Serve = Callable[..., AbstractAsyncContextManager[Sidecar]]


def logits_of(*tokens: int, size: int = ROW) -> np.ndarray:
    """The row after some tokens: what a model would say, any fixed function of them."""
    noise = np.random.default_rng([len(tokens), *tokens])
    return noise.normal(size=size, scale=2.0).astype(np.float32)


class Stream:
    """A Process call, message by message."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.call = rpc.LogitsProcessingStub(channel).Process()
        self.number = 0

    async def send(self, **message: Any) -> None:
        await self.call.write(pb.ProcessRequest(**message))

    async def read(self) -> pb.ProcessResponse:
        response = await self.call.read()
        assert response is not grpc.aio.EOF
        return response

    async def open(self, data: dict[str, Any] | None = None, **changes: Any) -> pb.Ready:
        await self.send(handshake=handshake(data, **changes))
        return (await self.read()).ready

    async def step(
        self, logits: np.ndarray | None, *rows: pb.SequenceRow, **changes: Any
    ) -> pb.Result:
        step = pb.Step(number=self.number, rows=rows)
        if logits is not None:
            step.logits.CopyFrom(tensor_of(logits, changes.pop("dtype", None)))
        await self.send(step=step)
        self.number += 1
        return (await self.read()).result

    async def refused(self) -> tuple[str, list[str]]:
        """The code that ends the call, and the fields that are wrong."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            while await self.call.read() is not grpc.aio.EOF:
                pass
        status = rpc_status.from_call(raised.value)
        fields = []
        for detail in status.details if status is not None else ():
            bad = BadRequest()
            if detail.Unpack(bad):
                fields += [violation.field for violation in bad.field_violations]
        return raised.value.code().name, fields


def handshake(data: dict[str, Any] | None = None, **changes: Any) -> pb.Handshake:
    fields: dict[str, Any] = {
        "protocol_version": 1,
        "vocabulary_fingerprint": VOCABULARY.fingerprint,
        "row_size": ROW,
        "dtype": tensor_pb2.DTYPE_FLOAT32,
        "strategy": strategy_message(Strategy(**(data or DATA))),
        "answer": pb.ANSWER_TOKEN,
        **changes,
    }
    for other in {"tokenizer_json", "tokens"} & changes.keys():
        assert other
        del fields["vocabulary_fingerprint"]
    return pb.Handshake(**fields)


def row(id: int, token: int | None = None, sequence: int = 0) -> pb.SequenceRow:
    return pb.SequenceRow(id=id, token=token, sequence=sequence)


@pytest.fixture
def streams(serve: Serve) -> Any:
    """`async with streams(**settings) as new`, whose `new()` is a call to a server."""

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[Any]:
        def services(runtime: Any) -> list[Any]:
            return [logits_processing(runtime, lambda: [VOCABULARY])]

        async with serve(services, **settings) as sidecar:
            options = [("grpc.max_send_message_length", 256 << 20)]
            async with grpc.aio.insecure_channel(sidecar.addresses[0], options) as channel:
                yield lambda: Stream(channel)

    return opened


def in_process(prompts: list[list[int]], steps: int) -> tuple[list[list[int]], Any]:
    """What `ConstrainedSampling` draws from the same logits: tokens of each row, and itself."""
    torch = pytest.importorskip("torch")
    processor = ConstrainedSampling(Regex(REGEX), VOCABULARY, seed=7)
    ids = torch.tensor(prompts)
    length = ids.shape[1]
    with pytest.warns(UncheckedLawWarning):
        for _ in range(steps):
            logits = np.stack([logits_of(*each[length:]) for each in ids.tolist()])
            scores = processor(ids, torch.tensor(logits))
            ids = torch.cat([ids, scores.argmax(1, keepdim=True)], 1)
    return [each[length:] for each in ids.tolist()], processor


@pytest.mark.parametrize("alone", [True, False])
def test_tokens_and_weights_are_those_of_the_logits_processor(
    alone: bool, streams: Any, in_loop: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a step is drawn in the event loop or in a thread."""
    monkeypatch.setattr(LogitsProcessing, "_goes_on_here", lambda self, stream: alone)
    prompts = [[1, 2, 3], [1, 2, 3], [4, 4, 4], [0, 2, 1]]
    sequences = [sequence_of(prompts[0], 0), sequence_of(prompts[0], 1)]
    sequences += [sequence_of(prompt) for prompt in prompts[2:]]
    data = {"constraint": {"regex": REGEX}, "seed": 7, "limits": {"max_new_tokens": 100}}

    async def remote() -> tuple[list[list[int]], list[float]]:
        async with streams() as new:
            stream = new()
            ready = await stream.open(data)
            assert ready.vocabulary_fingerprint == VOCABULARY.fingerprint
            assert (ready.vocabulary_size, ready.sampler) == (len(VOCABULARY), "mask")
            tokens: list[list[int]] = [[] for _ in prompts]
            totals = [0.0] * len(prompts)
            for _ in range(8):
                rows = [row(i, sequence=sequences[i]) for i in range(len(prompts))]
                result = await stream.step(np.stack([logits_of(*t) for t in tokens]), *rows)
                for i, each in enumerate(result.rows):
                    totals[i] = each.total_log_weight
                    tokens[i].append(each.token if each.token >= 0 else VOCABULARY.eos_ids[0])
            return tokens, totals

    tokens, totals = in_loop(remote())
    expected, processor = in_process(prompts, 8)
    assert tokens == expected
    assert totals == list(processor.log_weights)
    assert any(5 in each for each in tokens) and len({tuple(each) for each in tokens}) > 1


class TableRows:
    """Rows of a model that is `logits_of`."""

    def __init__(self, texts: list[tuple[int, ...]]) -> None:
        self.texts = texts
        self.logits = np.stack([logits_of(*tokens) for tokens in texts])

    def advance(self, parents: Any, tokens: Any) -> TableRows:
        grown = zip(parents, tokens, strict=True)
        return TableRows([(*self.texts[parent], token) for parent, token in grown])


PARTICLES = {**DATA, "seed": 5, "smc": {"particles": 8, "ess_threshold": 1.0}}


async def particles(stream: Stream, data: dict[str, Any]) -> tuple[list[pb.Result], Any]:
    """The loop of an engine: all results, and the summary."""
    await stream.open(data, sequence=77)
    rows, results = TableRows([()]), []
    while True:
        results.append(await stream.step(rows.logits))
        if not results[-1].parents:
            return results, (await stream.read()).summary
        rows = rows.advance(results[-1].parents, results[-1].tokens)


def test_particles_are_those_of_run(streams: Any, in_loop: Run) -> None:
    async def remote() -> Any:
        async with streams() as new:
            stream = new()
            results, summary = await particles(stream, PARTICLES)
            assert await stream.call.read() is grpc.aio.EOF
            assert (await stream.call.code()).name == "OK"
            return results, summary

    results, summary = in_loop(remote())
    strategy = Strategy(**PARTICLES)
    matcher = Regex(REGEX).compile(VOCABULARY)
    expected = run(TableRows([()]), matcher, sequence=77, **strategy.run_options())
    assert [list(p.token_ids) for p in summary.particles] == [
        list(p.token_ids) for p in expected.particles
    ]
    assert [p.log_weight for p in summary.particles] == [p.log_weight for p in expected.particles]
    assert summary.log_evidence == expected.log_evidence > -math.inf
    assert [tuple(a.ancestors) for a in summary.ancestry] == list(expected.ancestry)
    assert list(summary.ess) == list(expected.ess)
    assert (summary.proper, summary.sampler, summary.seed) == (True, "mask", 5)
    told = [result.resampling for result in results if result.HasField("resampling")]
    assert told
    for event in told:
        assert tuple(event.ancestors) == expected.ancestry[event.position - 1]


def test_a_run_that_its_client_ends_early_is_summed_up_as_cancelled(
    streams: Any, in_loop: Run
) -> None:
    async def remote() -> Any:
        async with streams() as new:
            stream = new()
            await stream.open(PARTICLES)
            await stream.step(logits_of()[None])
            await stream.call.done_writing()
            return (await stream.read()).summary

    summary = in_loop(remote())
    statuses = [SequenceStatus.Name(p.status) for p in summary.particles]
    assert len(statuses) == 8 and "SEQUENCE_STATUS_CANCELLED" in statuses


@pytest.mark.parametrize("dtype", ["FLOAT64", "FLOAT16", "BFLOAT16"])
def test_other_types_draw_from_the_values_they_hold(dtype: str, streams: Any, in_loop: Run) -> None:
    kind = tensor_pb2.Dtype.Value(f"DTYPE_{dtype}")
    held = tensor_of(logits_of()[None].astype(np.float64), kind)
    stored = array_from(held, None, name="x", dtype=kind, shape=(1, ROW))
    assert held.inline and DTYPES[kind].itemsize * ROW == len(held.inline)

    async def remote() -> tuple[Any, Any]:
        async with streams() as new:
            one, other = new(), new()
            await one.open(dtype=kind, answer=pb.ANSWER_LOGITS)
            await other.open(answer=pb.ANSWER_LOGITS, dtype=tensor_pb2.DTYPE_FLOAT64)
            first = await one.step(logits_of()[None].astype(np.float64), row(1), dtype=kind)
            second = await other.step(stored.astype(np.float64), row(1))
            return first, second

    first, second = in_loop(remote())
    got = array_from(first.tensor, None, name="x", dtype=kind, shape=(1, ROW))
    same = array_from(second.tensor, None, name="x", dtype=tensor_pb2.DTYPE_FLOAT64, shape=(1, ROW))
    np.testing.assert_array_equal(got.astype(np.float64), same)
    assert first.rows[0].log_weight == pytest.approx(second.rows[0].log_weight, abs=1e-6)


def test_masks_forks_and_closes(streams: Any, in_loop: Run) -> None:
    async def remote() -> None:
        async with streams() as new:
            stream = new()
            await stream.open(answer=pb.ANSWER_MASK)
            result = await stream.step(None, row(1))
            assert math.isnan(result.rows[0].log_weight)
            mask = array_from(
                result.tensor, None, name="x", dtype=tensor_pb2.DTYPE_UINT32, shape=(1, 1)
            )
            matcher = Regex(REGEX).compile(VOCABULARY)
            allowed = matcher.allows(matcher.start(), range(len(VOCABULARY)))
            np.testing.assert_array_equal(unpack_mask(mask[0], len(VOCABULARY)), allowed)
            await stream.send(fork=pb.Fork(parent=1, to=2, sequence=9))
            result = await stream.step(None, row(1, 2), row(2, 3))  # "ab", "ba"
            assert [each.status for each in result.rows] == [1, 1]
            result = await stream.step(None, row(1, 5), row(2, 1))  # its end; "bab"
            assert [each.status for each in result.rows] == [2, 1]
            await stream.send(close=pb.Close(id=1))
            result = await stream.step(None, row(1), row(2, 6))  # 1 anew; "bab" cannot end
            assert [each.status for each in result.rows] == [1, 4]
            assert result.rows[1].reason

    in_loop(remote())


def test_logits_that_are_no_numbers_end_their_row_alone(streams: Any, in_loop: Run) -> None:
    async def remote() -> Any:
        async with streams() as new:
            stream = new()
            await stream.open()
            logits = np.stack([logits_of(), logits_of()])
            logits[0, 3] = np.nan
            result = await stream.step(logits, row(1), row(2))
            again = await stream.step(np.stack([logits_of(1)]), row(1))
            return result, again

    result, again = in_loop(remote())
    dead, live = result.rows
    assert (dead.token, dead.status, dead.log_weight) == (-1, 4, -math.inf)
    assert "NaN" in dead.reason and live.status in (1, 2) and live.token >= 0
    assert (again.rows[0].token, again.rows[0].status) == (-1, 4)


HANDSHAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "version": ({"protocol_version": 2}, "INVALID_ARGUMENT", "handshake.protocol_version"),
    "answer": ({"answer": 0}, "INVALID_ARGUMENT", "handshake.answer"),
    "dtype": ({"dtype": tensor_pb2.DTYPE_INT64}, "INVALID_ARGUMENT", "handshake.dtype"),
    "row too short": ({"row_size": 6}, "INVALID_ARGUMENT", "handshake.row_size"),
    "row too long": ({"row_size": 4096}, "INVALID_ARGUMENT", "handshake.row_size"),
    "eos": ({"eos_ids": [99]}, "INVALID_ARGUMENT", "handshake.eos_ids"),
    "no such vocabulary": ({"vocabulary_fingerprint": "x" * 64}, "NOT_FOUND", ""),
    "json": ({"tokenizer_json": b"{"}, "INVALID_ARGUMENT", "handshake.tokenizer_json"),
    "table without end": (
        {"tokens": pb.TokenTable(tokens=[b"a"])},
        "INVALID_ARGUMENT",
        "handshake.eos_ids",
    ),
    "no table": (
        {"tokens": pb.TokenTable(), "eos_ids": [0]},
        "INVALID_ARGUMENT",
        "handshake.tokens",
    ),
    "long token": (
        {"tokens": pb.TokenTable(tokens=[b"a" * 2000, b""]), "eos_ids": [1]},
        "INVALID_ARGUMENT",
        "handshake.vocabulary",
    ),
    "regions": (
        {"regions": [pb.Region(name="a", key="b", size_bytes=1)]},
        "INVALID_ARGUMENT",
        "handshake.regions",
    ),
    "regex": (
        {"data": {"constraint": {"regex": "("}}},
        "INVALID_ARGUMENT",
        "strategy.constraint.regex",
    ),
    "no budget": (
        {"data": {"sampler": {"awrs": {}}}},
        "INVALID_ARGUMENT",
        "strategy.sampler.awrs.rejects",
    ),
    "awrs for a mask": (
        {"data": {**DATA, "sampler": {"awrs": {"rejects": 9}}}, "answer": pb.ANSWER_MASK},
        "INVALID_ARGUMENT",
        "strategy.sampler",
    ),
    "particles for a mask": (
        {"data": PARTICLES, "answer": pb.ANSWER_LOGITS},
        "INVALID_ARGUMENT",
        "handshake.answer",
    ),
    "too short a limit": (
        {"data": {**DATA, "limits": {"max_new_tokens": 1}, "smc": {"particles": 2}}},
        "INVALID_ARGUMENT",
        "strategy.limits.max_new_tokens",
    ),
    "greedy particles": (
        {"data": {**PARTICLES, "law": {"temperature": 0.0}}},
        "INVALID_ARGUMENT",
        "strategy.law.temperature",
    ),
}


@pytest.mark.parametrize("case", HANDSHAKES)
def test_a_handshake_that_is_none_names_its_field(case: str, streams: Any, in_loop: Run) -> None:
    changes, code, field = HANDSHAKES[case]

    async def remote() -> Any:
        async with streams() as new:
            stream = new()
            await stream.send(handshake=handshake(**changes))
            refused = await stream.refused()
            other = new()  # the server lives
            await other.open()
            return refused

    assert in_loop(remote()) == (code, [field] if field else [])


def step_of(**changes: Any) -> pb.ProcessRequest:
    fields: dict[str, Any] = {
        "number": 0,
        "rows": [row(1)],
        "logits": tensor_of(logits_of()[None]),
        **changes,
    }
    return pb.ProcessRequest(step=pb.Step(**fields))


def _tensor(**changes: Any) -> tensor_pb2.Tensor:
    tensor = tensor_of(logits_of()[None])
    for name, value in changes.items():
        tensor.ClearField(name)
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        elif name == "shared_memory":
            tensor.shared_memory.CopyFrom(value)
        else:
            setattr(tensor, name, value)
    return tensor


STEPS: dict[str, tuple[pb.ProcessRequest, str]] = {
    "number": (step_of(number=1), "step.number"),
    "shape": (step_of(logits=_tensor(shape=[1, ROW - 1])), "step.logits.shape"),
    "rows": (step_of(rows=[row(1), row(2)]), "step.logits.shape"),
    "dtype": (step_of(logits=_tensor(dtype=2)), "step.logits.dtype"),
    "few bytes": (step_of(logits=_tensor(inline=b"1234")), "step.logits.inline"),
    "many dimensions": (step_of(logits=_tensor(shape=[1] * 1000)), "step.logits.shape"),
    "huge": (step_of(logits=_tensor(shape=[1 << 40, 1 << 40])), "step.logits.shape"),
    "no data": (
        step_of(logits=tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[1, ROW])),
        "step.logits.data",
    ),
    "no logits": (step_of(logits=None), "step.logits"),
    "too many": (step_of(rows=[row(i) for i in range(1025)]), "step.rows"),
    "no rows": (step_of(rows=[], logits=_tensor(shape=[0, ROW], inline=b"")), "step.rows"),
    "twice": (
        step_of(rows=[row(1), row(1)], logits=tensor_of(np.zeros((2, ROW), np.float32))),
        "step.rows",
    ),
    "a token": (step_of(rows=[row(1, token=1)]), "step.rows[0].token"),
    "unknown region": (
        step_of(logits=_tensor(shared_memory=tensor_pb2.SharedMemory(region="x"))),
        "step.logits.shared_memory",
    ),
    "fork": (pb.ProcessRequest(fork=pb.Fork(parent=1, to=2)), "fork.parent"),
    "close": (pb.ProcessRequest(close=pb.Close(id=1)), "close.id"),
    "handshake": (pb.ProcessRequest(handshake=handshake()), "message"),
    "nothing": (pb.ProcessRequest(), "message"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_message_that_cannot_be_ends_the_stream_alone(
    case: str, streams: Any, in_loop: Run
) -> None:
    message, field = STEPS[case]

    async def remote() -> Any:
        async with streams() as new:
            stream, other = new(), new()
            await stream.open()
            await other.open()
            await stream.call.write(message)
            refused = await stream.refused()
            await other.step(logits_of()[None], row(1))
            return refused

    assert in_loop(remote()) == ("INVALID_ARGUMENT", [field])


def test_bytes_that_are_no_message_end_the_stream_alone(streams: Any, in_loop: Run) -> None:
    async def remote() -> Any:
        refusals = []
        async with streams() as new:
            for opened in (False, True):
                for data in (b"\xff" * 30, b"\xff" * (2 << 20)):
                    stream = new()
                    method = stream.channel.stream_stream("/midstream.v1.LogitsProcessing/Process")
                    stream.call = method()
                    if opened:
                        message = pb.ProcessRequest(handshake=handshake())
                        await stream.call.write(message.SerializeToString())
                        await stream.call.read()
                    await stream.call.write(data)
                    refusals.append(await stream.refused())
        return refusals

    assert in_loop(remote()) == [("INVALID_ARGUMENT", ["request"])] * 4


def test_particles_take_no_rows_and_no_forks(streams: Any, in_loop: Run) -> None:
    async def remote() -> Any:
        refusals = []
        async with streams() as new:
            for message in (step_of(), pb.ProcessRequest(close=pb.Close(id=1))):
                stream = new()
                await stream.open(PARTICLES)
                await stream.call.write(message)
                refusals.append(await stream.refused())
        return refusals

    assert in_loop(remote()) == [
        ("INVALID_ARGUMENT", ["step.rows"]),
        ("INVALID_ARGUMENT", ["close"]),
    ]


def test_open_sequences_are_bounded(streams: Any, in_loop: Run) -> None:
    async def remote() -> Any:
        async with streams(limits=Limits(sequences=3)) as new:
            stream = new()
            await stream.open(answer=pb.ANSWER_MASK)
            await stream.step(None, row(1), row(2), row(3))
            await stream.send(close=pb.Close(id=2))
            await stream.step(None, row(4))
            await stream.send(fork=pb.Fork(parent=1, to=5))
            return await stream.refused()

    assert in_loop(remote()) == ("INVALID_ARGUMENT", ["fork"])


def test_a_stream_that_says_nothing_is_closed(streams: Any, in_loop: Run) -> None:
    async def remote() -> Any:
        limits = Limits(handshake_seconds=0.2, idle_seconds=0.3)
        async with streams(limits=limits) as new:
            silent, idle, lively = new(), new(), new()
            await lively.open()
            await idle.open()
            refusals = [await silent.refused(), await idle.refused()]
            return refusals, await lively.refused()

    refusals, last = in_loop(remote())
    assert [code for code, _ in [*refusals, last]] == ["DEADLINE_EXCEEDED"] * 3


def test_a_stream_that_moves_is_not_idle(streams: Any, in_loop: Run) -> None:
    async def remote() -> None:
        async with streams(limits=Limits(idle_seconds=0.4)) as new:
            stream = new()
            await stream.open(answer=pb.ANSWER_MASK)
            await stream.step(None, row(0))
            for i in range(1, 8):
                await asyncio.sleep(0.1)
                await stream.step(None, row(i))

    in_loop(remote())


def test_a_vocabulary_is_sent_once_and_then_known(streams: Any, in_loop: Run) -> None:
    text = (embedded_model_path() / "tokenizer.json").read_bytes()
    own = Vocabulary.from_tokenizer(embedded_model_path())
    data = {"constraint": {"regex": "[a-z ]+"}}

    async def remote() -> Any:
        async with streams() as new:
            size = len(own)
            first = await new().open(data, tokenizer_json=text, row_size=size)
            eos = {"eos_ids": [7]}
            other = await new().open(data, tokenizer_json=text, row_size=size, **eos)
            known = {"vocabulary_fingerprint": first.vocabulary_fingerprint, "row_size": size}
            again = await new().open(data, **known)
            changed = await new().open(data, **known, **eos)
            table = pb.TokenTable(tokens=own.token_bytes)
            told = await new().open(data, tokens=table, eos_ids=own.eos_ids, row_size=size)
            return first, again, told, other, changed

    first, again, told, other, changed = in_loop(remote())
    assert first == again == told
    assert first.vocabulary_fingerprint == own.fingerprint
    assert other == changed
    assert other.vocabulary_fingerprint != own.fingerprint


def test_few_vocabularies_are_kept_and_a_stream_keeps_its_own(streams: Any, in_loop: Run) -> None:
    async def remote() -> Any:
        async with streams(limits=Limits(vocabularies=2)) as new:
            fingerprints, first = [], new()
            for i in range(3):
                stream = new() if i else first
                table = pb.TokenTable(tokens=[b"a", b"b", b"x%d" % i, b""])
                data = {"constraint": {"regex": "[ab]+"}}
                ready = await stream.open(data, tokens=table, eos_ids=[3], row_size=4)
                fingerprints.append(ready.vocabulary_fingerprint)
            refusals = []
            for fingerprint in fingerprints:
                stream = new()
                known = handshake(data, vocabulary_fingerprint=fingerprint, row_size=4)
                await stream.send(handshake=known)
                if fingerprint == fingerprints[0]:
                    refusals.append(await stream.refused())
                else:
                    await stream.read()
            result = await first.step(np.zeros((1, 4), np.float32), row(1))
            return refusals, result.rows[0].token

    refusals, token = in_loop(remote())
    assert refusals == [("NOT_FOUND", [])] and token in (0, 1)


def test_a_tokenizer_that_grows_without_bound_is_stopped(
    streams: Any, in_loop: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabularies, "READ_BYTES", 300 << 20)
    plain = (embedded_model_path() / "tokenizer.json").read_bytes()
    size = len(Vocabulary.from_tokenizer(embedded_model_path()))
    state = json.loads(plain)
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    state["normalizer"] = {"type": "Sequence", "normalizers": [double] * 45}

    async def remote() -> Any:
        async with streams() as new:
            await new().open(tokenizer_json=plain, row_size=size)  # the bound is no narrow one
            stream = new()
            await stream.send(handshake=handshake(tokenizer_json=json.dumps(state).encode()))
            refused = asyncio.create_task(stream.refused())
            other = new()  # others go on meanwhile
            await other.open()
            return await refused

    assert in_loop(remote()) == ("INVALID_ARGUMENT", ["handshake.tokenizer_json"])


def test_what_a_client_sends_is_quoted_shortly(streams: Any, in_loop: Run) -> None:
    async def remote() -> str:
        async with streams() as new:
            stream = new()
            data = {"constraint": {"regex": "(" + "é\n" * 500}}
            await stream.send(handshake=handshake(data))
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stream.call.read()
            return raised.value.details() or ""

    details = in_loop(remote())
    assert details.isascii() and details.isprintable() and len(details) < 500


def test_a_client_that_leaves_frees_what_it_held(streams: Any, in_loop: Run) -> None:
    async def remote() -> None:
        async with streams(limits=Limits(streams=4)) as new:
            for _ in range(10):
                leaving = [new() for _ in range(4)]
                for stream in leaving:
                    await stream.open()
                    await stream.send(step=step_of().step)
                for stream in leaving:
                    stream.call.cancel()
                    await asyncio.wait([asyncio.ensure_future(stream.call.code())])
                await asyncio.sleep(0.05)

    in_loop(remote())


@pytest.mark.parametrize("workers", [4, 1])
def test_a_slow_constraint_does_not_hold_up_the_others(
    workers: int, streams: Any, in_loop: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread it does, and the event loop goes on even so."""
    working = threading.Event()

    def prefix(text: bytes) -> bool:
        working.set()
        time.sleep(0.02)
        return True

    slow = Predicate(prefix=prefix, complete=lambda text: False).compile(VOCABULARY)

    def prepared(strategy: Strategy, vocabulary: Vocabulary, limits: Limits) -> Prepared:
        ready = admission.prepared(strategy, vocabulary, limits)
        if strategy.seed != 99:
            return ready
        return dataclasses.replace(ready, matcher=slow, sampler=AWRS(rejects=64))

    monkeypatch.setattr(process_handshake, "prepared", prepared)
    data = {**DATA, "seed": 99}

    async def remote() -> tuple[float, float, float]:
        loop = asyncio.get_running_loop()
        async with streams(limits=Limits(workers=workers)) as new:
            busy, quick = new(), new()
            await busy.open(data)
            await quick.open({**DATA, "constraint": {"grammar": 'start: "ab"+'}})
            begin = loop.time()
            many = np.stack([logits_of()] * 40)
            rows = [row(i, sequence=i) for i in range(40)]
            task = asyncio.create_task(busy.step(many, *rows))
            await asyncio.to_thread(working.wait, 10)
            await new().open()  # a handshake is not held up in any case
            opened = loop.time() - begin
            for i in range(10):
                await quick.step(logits_of()[None], row(i))
            done = loop.time() - begin
            await task
            return opened, done, loop.time() - begin

    opened, done, total = in_loop(remote())
    assert total > 0.8 and opened < total / 2
    assert (done < total / 2) == (workers == 4)


def test_steps_are_counted_by_what_came_of_them(serve: Serve, in_loop: Run) -> None:
    async def remote() -> None:
        runtimes = []

        def services(runtime: Any) -> list[Any]:
            runtimes.append(runtime)
            return [logits_processing(runtime, lambda: [VOCABULARY])]

        data = {**PARTICLES, "smc": {"particles": 8, "ess_threshold": 0.0}}
        async with serve(services) as sidecar:
            async with grpc.aio.insecure_channel(sidecar.addresses[0]) as channel:
                _, summary = await particles(Stream(channel), data)
                drawn = sum(len(particle.token_ids) for particle in summary.particles)
                stream = Stream(channel)
                await stream.open()
                logits = np.stack([logits_of(), np.full(ROW, np.nan)]).astype(np.float32)
                await stream.step(logits, row(1), row(2))
                await stream.step(logits[1:], row(2))  # it had ended: nothing is drawn
            told = runtimes[0].telemetry.metrics.registry.get_sample_value
            service = {"service": "logits_processing"}
            assert told("midstream_dead_particles_total", {**service, "status": "dead"}) == 1
            assert told("midstream_tokens_total", service) == drawn + 1
            steps = len(summary.ess)
            assert told("midstream_effective_sample_share_count", service) == steps
            for phase in ("compile", "draw"):
                labels = {**service, "phase": phase}
                count = told("midstream_step_seconds_count", labels)
                assert count == (2 if phase == "compile" else steps + 2)

    in_loop(remote())


def test_awrs_over_the_wire_draws_what_it_draws_in_process(streams: Any, in_loop: Run) -> None:
    data = {**DATA, "sampler": {"awrs": {"rejects": 50}}, "smc": {"particles": 4}}

    async def remote() -> Any:
        async with streams() as new:
            return (await particles(new(), data))[1]

    summary = in_loop(remote())
    options = Strategy(**data).run_options()
    options["sampler"] = AWRS(rejects=50)
    matcher = Regex(REGEX).compile(VOCABULARY)
    expected = run(TableRows([()]), matcher, sequence=77, **options)
    assert [p.log_weight for p in summary.particles] == [p.log_weight for p in expected.particles]
    assert [p.checks for p in summary.particles] == [p.checks for p in expected.particles]
    assert summary.sampler == "awrs"
