"""Messages of every kind, good and bad, and a server that neither breaks nor draws what it may not.

`FUZZ_SECONDS` in the environment says how long; by default hypothesis has 40 s. atheris, where it
is installed, has half as long: it changes what covers new code of the server, which then runs in
the same process (this file run as a program).
"""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import hypothesis
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.sidecar.assembly import sidecar
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.metrics import Metrics
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.adapters.sidecar.wire.strategy import strategy_message
from midstream.adapters.sidecar.wire.tensors import tensor_of
from midstream.kernels.bitmask import unpack_mask
from midstream.middleware.constraints import Regex
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import decoding_pb2, status_pb2, strategy_pb2, tensor_pb2
from midstream.proto.v1 import logits_processing_pb2 as pb

SECONDS = float(os.environ.get("FUZZ_SECONDS", "40"))
CALL_SECONDS = 30.0
"""A call that takes longer hangs."""

LONGEST_MESSAGE = 2000

BOUNDS = Limits(
    particles=8, max_new_tokens=24, prompt_bytes=4096, sequences=8, rejects=256, regions=2
)
"""Small ones, so that both sides of each are met."""

CALM = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
"""How a call may end, whatever was sent."""

TOKENS = [b"a", b"b", b"ab", b"ba", b"aab", b"bb", b'"', b"true", b"tr", b"ue", b"", b""]
EOS = [10, 11]
VOCABULARY = Vocabulary(TOKENS, eos_ids=EOS)
ROW = 14
REGION = f"midstream-fuzz-{os.getpid()}"
REGION_BYTES = 4 * 8 * ROW * 8


@dataclass(frozen=True)
class Rule:
    """A constraint, and what it means in words that have nothing of ours in them.

    begun: whether a text may be the beginning of a good one.
    """

    constraint: Mapping[str, Any] | None
    full: Callable[[bytes], object]
    begun: Callable[[bytes], object]


def _balanced(text: bytes, *, whole: bool) -> bool:
    a, b = text.count(b"a"), text.count(b"b")
    return text == b"a" * a + b"b" * b and (a == b > 0 if whole else b <= a)


def _rule(constraint: Any, full: bytes, begun: bytes) -> Rule:
    return Rule(constraint, re.compile(full).fullmatch, re.compile(begun).fullmatch)


RULES = (
    _rule({"regex": "(ab|ba)+"}, rb"(ab|ba)+", rb"(ab|ba)*[ab]?"),
    _rule({"choice": ["ab", "abba", "b"]}, rb"ab|abba|b", rb"|a|abb?|abba|b"),
    _rule({"json_schema": {"enum": [True, "ab"]}}, rb'true|"ab"', rb't?|tr|tru|true|"(a(b"?)?)?'),
    _rule(
        {"all_of": [{"regex": "[ab]{2,6}"}, {"regex": "(ab|ba)+"}]},
        rb"(ab|ba){1,3}",
        rb"(ab|ba){0,3}|(ab|ba){0,2}[ab]",
    ),
    Rule(
        {"grammar": 'start: "a" start "b" | "ab"'},
        lambda text: _balanced(text, whole=True),
        lambda text: _balanced(text, whole=False),
    ),
    _rule(None, rb"(?s:.)*", rb"(?s:.)*"),
)

RUNNING, FINISHED = status_pb2.SEQUENCE_STATUS_RUNNING, status_pb2.SEQUENCE_STATUS_FINISHED
WITHOUT_WEIGHT = (status_pb2.SEQUENCE_STATUS_DEAD, status_pb2.SEQUENCE_STATUS_EXHAUSTED)


def check_text(rule: Rule, text: bytes, status: int, log_weight: float) -> None:
    """What a sequence has must be what the constraint allows; without it, no weight."""
    assert not math.isnan(log_weight)
    if status in WITHOUT_WEIGHT:
        assert log_weight == -math.inf
    else:
        assert (rule.full if status == FINISHED else rule.begun)(text), (rule.constraint, text)


# What is sent


TRUNCATIONS = st.sampled_from(
    [{}, {"top_k": 4, "truncation": "target"}, {"top_p": 0.9, "truncation": "target"}]
)


def strategies(draw: Any, rule: Rule) -> strategy_pb2.Strategy:
    """A strategy that says something."""
    masked = rule.constraint is not None and "all_of" not in rule.constraint
    samplers: list[Any] = ["auto", {"awrs": {"rejects": 64}}, *(["mask"] if masked else [])]
    data: dict[str, Any] = {
        "sampler": draw(st.sampled_from(samplers)),
        "seed": draw(st.integers(0, 3)),
        "limits": {"max_new_tokens": draw(st.integers(2, 9))},
        "law": {"temperature": draw(st.sampled_from([0.5, 1.0, 2.0])), **draw(TRUNCATIONS)},
    }
    if rule.constraint is not None:
        data["constraint"] = rule.constraint
    if draw(st.booleans()):
        data["smc"] = {
            "particles": draw(st.integers(1, 4)),
            "ess_threshold": draw(st.sampled_from([0.0, 0.5, 1.0])),
            "resampling": draw(st.sampled_from(["systematic", "residual", "multinomial"])),
            "finished": draw(st.sampled_from(["aside", "together"])),
        }
    return strategy_message(Strategy(**data))


def a_generate(draw: Any, rule: Rule) -> decoding_pb2.GenerateRequest:
    """A good request."""
    return decoding_pb2.GenerateRequest(
        text=draw(st.sampled_from(["Once", "1 + 1 = ", "\u00e9\u4e16"])),
        strategy=strategies(draw, rule),
        events=draw(st.sampled_from([[], [decoding_pb2.EVENT_KIND_NONE]])),
        occurrence=draw(st.integers(0, 2)),
    )


def a_handshake(draw: Any, rule: Rule) -> pb.Handshake:
    """A good one, for the tokens above."""
    region = pb.Region(name="r", key=REGION, size_bytes=REGION_BYTES)
    answers = [pb.ANSWER_TOKEN, pb.ANSWER_MASK, pb.ANSWER_LOGITS]
    return pb.Handshake(
        protocol_version=1,
        tokens=pb.TokenTable(tokens=TOKENS),
        eos_ids=EOS,
        row_size=ROW,
        dtype=draw(st.sampled_from([tensor_pb2.DTYPE_FLOAT32, tensor_pb2.DTYPE_BFLOAT16])),
        strategy=strategies(draw, rule),
        answer=draw(st.sampled_from(answers)),
        regions=draw(st.sampled_from([[], [region]])),
    )


NUMBERS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}
TEXTS = ("", "mask", "(", "[a-b]{2,9}", "(a|b)*", "\0\n", "start: /a+/", '{"type":"object"}', "[[[")


def a_value(draw: Any, field: FieldDescriptor, depth: int) -> Any:
    """Anything that a field can hold."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        value = GetMessageClass(field.message_type)()
        for inner in field.message_type.fields if depth else ():
            if draw(st.booleans()):
                put(draw, value, inner, depth - 1)
        return value
    if field.cpp_type in NUMBERS:
        least, most = NUMBERS[field.cpp_type]
        return draw(st.one_of(st.integers(0, 8), st.integers(least, most)))
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return draw(st.one_of(st.floats(0, 1), st.floats()))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return draw(st.booleans())
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.binary(max_size=64))
    no_surrogates = st.characters(exclude_categories=["Cs"])
    return draw(st.one_of(st.sampled_from(TEXTS), st.text(no_surrogates, max_size=40)))


def put(draw: Any, message: Message, field: FieldDescriptor, depth: int = 3) -> None:
    """Give a field some value."""
    old = getattr(message, field.name)
    repeated = hasattr(old, "extend")
    value = a_value(draw, field, depth)
    if repeated:
        old.extend([value] * draw(st.sampled_from([1, 1, 2, 40])))
    elif isinstance(value, Message):
        old.CopyFrom(value)
    else:
        setattr(message, field.name, value)


def change(draw: Any, message: Message) -> None:
    """Change one field of a message, or of one that it holds."""
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    value = getattr(message, field.name)
    held = [value] if isinstance(value, Message) else list(value) if hasattr(value, "add") else []
    if held and draw(st.integers(0, 3)):
        change(draw, draw(st.sampled_from(held)))
    elif draw(st.booleans()):
        message.ClearField(field.name)
    else:
        put(draw, message, field)


def sent(draw: Any, message: Message) -> bytes:
    """A message as it goes: mostly as it is, else changed, anything of its type, or noise."""
    how = draw(st.sampled_from(["as it is"] * 6 + ["changed"] * 3 + ["any", "cut", "noise"]))
    if how == "changed":
        for _ in range(draw(st.integers(1, 3))):
            change(draw, message)
    elif how == "any":
        message = type(message)()
        for each in message.DESCRIPTOR.fields:
            if draw(st.booleans()):
                put(draw, message, each)
    data = message.SerializeToString()
    if how == "cut":
        return data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=8))
    return draw(st.binary(max_size=64)) if how == "noise" else data


# What comes back


@dataclass
class Target:
    """A running server. ended: how many calls ended in which way."""

    channel: grpc.Channel
    spelled: Sequence[bytes]
    ended: dict[str, int] = field(default_factory=dict)

    def code(self, call: Any) -> str:
        """How a call ended, which must be as the protocol says."""
        name: str = call.code().name
        self.ended[name] = self.ended.get(name, 0) + 1
        assert name in CALM, (name, call.details())
        if name == "INVALID_ARGUMENT":
            status = rpc_status.from_call(call)
            assert status is not None and len(status.message) < LONGEST_MESSAGE
            bad = BadRequest()
            assert status.details[0].Unpack(bad) and bad.field_violations[0].field
        return name

    def once(self) -> bytes:
        """A good request's answer, the same at all times."""
        strategy = {"constraint": {"regex": "[a-z ]{4}"}, "limits": {"max_new_tokens": 6}}
        message = decoding_pb2.GenerateRequest(
            text="Once", strategy=strategy_message(Strategy(**strategy))
        )
        call = self.channel.unary_unary("/midstream.v1.Decoding/GenerateOnce")
        answer: bytes = call(message.SerializeToString(), timeout=CALL_SECONDS)
        return answer


def fuzz_generate(target: Target, data: st.DataObject) -> None:
    """One call of Decoding."""
    rule = data.draw(st.sampled_from(RULES))
    request = a_generate(data.draw, rule)
    good = request.SerializeToString()
    raw = sent(data.draw, request)
    rule = rule if raw == good else ANY
    call: Any = target.channel.unary_stream("/midstream.v1.Decoding/Generate")
    events = call(raw, timeout=CALL_SECONDS)
    texts: dict[int, bytes] = {}
    summary = None
    try:
        for answer in events:
            event = decoding_pb2.GenerateEvent.FromString(answer)
            if event.HasField("resampling"):
                texts = {i: texts[a] for i, a in enumerate(event.resampling.ancestors)}
            for each in event.tokens.tokens:
                text = texts[each.particle] = texts.get(each.particle, b"") + each.text
                check_text(rule, text, each.status, each.log_weight)
                assert each.token < 0 or target.spelled[each.token] == each.text
            summary = event.summary if event.HasField("summary") else summary
    except grpc.RpcError:
        pass
    ended = target.code(events)
    assert (summary is not None) == (ended == "OK")
    assert raw != good or ended == "OK", events.details()
    if summary is not None:
        check_summary(rule, target.spelled, summary)


def check_summary(rule: Rule, spelled: Sequence[bytes], summary: status_pb2.Summary) -> None:
    """Each particle by its tokens."""
    assert summary.particles and not math.isnan(summary.log_evidence)
    for each in summary.particles:
        text = b"".join(spelled[token] for token in each.token_ids)
        assert text == each.text
        check_text(rule, text, each.status, each.log_weight)


ANY = RULES[-1]


class Conversation:
    """A Process stream, as an engine that follows the protocol until a message was changed."""

    def __init__(self, target: Target, data: st.DataObject, rule: Rule) -> None:
        self.target, self.draw, self.rule = target, data.draw, rule
        self.faithful = data.draw(st.booleans())  # to the end
        self.good = True  # nothing was changed so far
        self.texts: dict[int, bytes] = {}
        self.tokens: dict[int, int] = {}
        self.ended: set[int] = set()
        self.rows = 1
        self.number = 0
        self.over = False
        self.queue: list[bytes | None] = []
        self.more = threading.Condition()
        call: Any = target.channel.stream_stream("/midstream.v1.LogitsProcessing/Process")
        self.call = call(self._requests(), timeout=CALL_SECONDS)

    def _requests(self) -> Iterator[bytes]:
        while True:
            with self.more:
                self.more.wait_for(lambda: self.queue)
                data = self.queue.pop(0)
            if data is None:
                return
            yield data

    def send(self, message: pb.ProcessRequest) -> pb.ProcessRequest | None:
        """Send it, changed or not; what the server reads, None where it cannot."""
        good = message.SerializeToString()
        data = good if self.faithful else sent(self.draw, message)
        self.good = self.good and data == good
        self._put(data)
        try:
            seen = pb.ProcessRequest.FromString(data)
        except DecodeError:
            return None
        self.follow(seen)
        return seen

    def follow(self, seen: pb.ProcessRequest) -> None:
        """What forks and closes make of the texts."""
        if seen.HasField("fork"):
            self.texts[seen.fork.to] = self.texts.get(seen.fork.parent, b"")
        elif seen.HasField("close"):
            self.texts.pop(seen.close.id, None)
            self.ended.discard(seen.close.id)

    def _put(self, data: bytes | None) -> None:
        with self.more:
            self.queue.append(data)
            self.more.notify()

    def close(self) -> None:
        """Half-close, take what still comes, and see how it ended."""
        self._put(None)
        try:
            for answer in self.call:
                self.last(pb.ProcessResponse.FromString(answer))
        except grpc.RpcError:
            pass
        ended = self.target.code(self.call)
        assert not self.good or ended == "OK", self.call.details()

    def read(self) -> pb.ProcessResponse:
        return pb.ProcessResponse.FromString(next(self.call))

    def last(self, response: pb.ProcessResponse) -> None:
        if response.HasField("summary") and self.rule is not ANY:
            check_summary(self.rule, TOKENS, response.summary)

    def go(self, handshake: pb.Handshake) -> None:
        """From the handshake to the last step."""
        if self.send(pb.ProcessRequest(handshake=handshake)) is None:
            return
        if not self.good:
            self.rule = ANY
        assert self.read().HasField("ready")
        for _ in range(self.draw(st.integers(1, 8))):
            if self.over:
                return
            if not self.faithful and not self.draw(st.integers(0, 7)):
                id = self.draw(st.integers(1, 4))
                either: Any = {"fork": pb.Fork(parent=id, to=9)}
                if self.draw(st.booleans()):
                    either = {"close": pb.Close(id=id)}
                self.good = False  # it may not be there
                self.send(pb.ProcessRequest(**either))
            self.step(handshake)

    def step(self, handshake: pb.Handshake) -> None:
        """Send a step, and look at its answer."""
        particles = handshake.strategy.HasField("smc") and handshake.answer == pb.ANSWER_TOKEN
        ids = [] if particles else self.draw(st.lists(st.integers(1, 4), min_size=1, unique=True))
        step = pb.Step(number=self.number)
        for each in ids:
            owed = self.tokens.get(each) if handshake.answer != pb.ANSWER_TOKEN else None
            step.rows.append(pb.SequenceRow(id=each, token=owed, sequence=each))
        rows = self.rows if particles else len(ids)
        noise = np.random.default_rng(self.draw(st.integers(0, 1 << 16)))
        logits = noise.normal(scale=2.0, size=(rows, ROW)).astype(np.float32)
        if self.draw(st.integers(0, 7)) == 0:
            logits[0, 0] = self.draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
        if handshake.answer != pb.ANSWER_MASK or self.draw(st.booleans()):
            step.logits.CopyFrom(tensor_of(logits, handshake.dtype))
            if handshake.regions and self.draw(st.booleans()):
                Path("/dev/shm", REGION).write_bytes(step.logits.inline.ljust(REGION_BYTES, b"\0"))
                step.logits.shared_memory.CopyFrom(tensor_pb2.SharedMemory(region="r", offset=0))
        seen = self.send(pb.ProcessRequest(step=step))
        if seen is None or seen.WhichOneof("message") != "step":
            return
        result = self.read().result
        assert result.number == seen.step.number == self.number
        self.number += 1
        if particles:
            assert all(parent < rows for parent in result.parents)
            self.rows = len(result.parents)
            self.over = self.over or not self.rows
        elif self.good or (self.rule is not ANY and handshake.answer == pb.ANSWER_TOKEN):
            assert not self.good or [row.id for row in result.rows] == ids
            self.check_rows(handshake, result)

    def check_rows(self, handshake: pb.Handshake, result: pb.Result) -> None:
        """What each sequence is told, and what the engine takes of what it is offered."""
        for i, row in enumerate(result.rows):
            text = self.texts.get(row.id, b"")
            if handshake.answer == pb.ANSWER_TOKEN:
                if row.token >= 0:
                    assert row.id not in self.ended
                    text += TOKENS[row.token]
                assert (row.token >= 0) or row.status != RUNNING
                check_text(self.rule, text, row.status, row.total_log_weight)
            elif row.id in self.tokens and row.id not in self.ended:
                text += TOKENS[self.tokens.pop(row.id)]
                if row.status not in WITHOUT_WEIGHT:  # what an engine drew wrongly is dead
                    check_text(self.rule, text, row.status, 0.0)
            self.texts[row.id] = text
            if row.status != RUNNING:
                self.ended.add(row.id)
            elif handshake.answer != pb.ANSWER_TOKEN:
                self.take(handshake, i, row.id, text, result)

    def take(
        self, handshake: pb.Handshake, i: int, id: int, text: bytes, result: pb.Result
    ) -> None:
        """Draw as an engine does from an offer that has to be right; sometimes draw what is not."""
        if handshake.answer == pb.ANSWER_MASK:
            words = np.frombuffer(result.tensor.inline, "<u4").reshape(len(result.rows), -1)
            allowed = np.flatnonzero(unpack_mask(words[i], ROW))
        else:
            width = len(result.tensor.inline) // len(result.rows) // ROW
            bits = np.frombuffer(result.tensor.inline, f"<u{width}").reshape(-1, ROW)[i]
            shift = 16 if width == 2 else 0
            allowed = np.flatnonzero((bits.astype(np.uint32) << shift).view(np.float32) > -np.inf)
        assert len(allowed)
        for token in allowed:
            fits = self.rule.full(text) if token in EOS else self.rule.begun(text + TOKENS[token])
            assert token < len(TOKENS) and fits, (self.rule.constraint, text, token)
        wrong = self.draw(st.integers(0, 9)) == 0
        choices = range(len(TOKENS)) if wrong else [int(token) for token in allowed]
        self.tokens[id] = self.draw(st.sampled_from(choices))


def fuzz_process(target: Target, data: st.DataObject) -> None:
    """One stream of LogitsProcessing."""
    rule = data.draw(st.sampled_from(RULES))
    handshake = a_handshake(data.draw, rule)
    masked = rule.constraint is not None and "all_of" not in rule.constraint
    awrs = handshake.strategy.sampler.HasField("awrs")
    particles = handshake.strategy.smc.particles > 1
    truncated = bool(handshake.strategy.law.truncation)
    if not masked or awrs or particles:  # which a mask cannot answer
        handshake.answer = pb.ANSWER_TOKEN
    elif truncated and handshake.answer == pb.ANSWER_MASK:
        handshake.answer = pb.ANSWER_LOGITS
    talk = Conversation(target, data, rule)
    try:
        talk.go(handshake)
    except (grpc.RpcError, StopIteration):
        pass
    except BaseException:  # hypothesis has enough, or a failure
        talk.call.cancel()
        raise
    talk.close()


FUZZ = {"generate": fuzz_generate, "process": fuzz_process}


# Who sends it


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


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with running(tmp_path_factory.mktemp("fuzz")) as target:
        yield target


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


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("kind", list(FUZZ))
def test_whatever_is_sent_the_server_answers_within_the_protocol(target: Target, kind: str) -> None:
    deadline = time.monotonic() + SECONDS / 2
    good, rounds, before = target.once(), 0, dict(target.ended)
    while time.monotonic() < deadline:
        hypothesis.seed(rounds)(fuzzer(target, kind))()
        assert target.once() == good, "the server answers as it did"
        rounds += 1
    ended = {code: count - before.get(code, 0) for code, count in target.ended.items()}
    assert ended["OK"] > rounds and ended["INVALID_ARGUMENT"] > rounds, ended


BROKEN: Mapping[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a constraint that is lost": lambda patch: patch.setattr(
        Strategy, "build_constraint", lambda strategy: Regex('[ab"]*')
    ),
    "a fault": lambda patch: patch.setattr(Metrics, "draw", _raises),
}


def _raises(*arguments: object) -> None:
    raise RuntimeError


@pytest.mark.parametrize("kind", list(FUZZ))
@pytest.mark.parametrize("broken", list(BROKEN))
def test_a_broken_server_is_found_out(
    target: Target, kind: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    BROKEN[broken](monkeypatch)
    with pytest.raises(AssertionError):
        hypothesis.seed(0)(fuzzer(target, kind, phases=[Phase.generate]))()


INSTRUMENTED = """
import runpy, sys, atheris
_, kind, path, *arguments = sys.argv
with atheris.instrument_imports(include=["midstream.adapters.sidecar", "midstream.middleware"]):
    names = runpy.run_path(path)
names["guided"](kind, arguments)
"""
"""What the names in this file are imported by is what atheris can follow."""


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("kind", list(FUZZ))
def test_what_covers_new_code_of_the_server_does_no_harm(kind: str, tmp_path: Path) -> None:
    options = [f"-max_total_time={int(SECONDS / 4)}", "-seed=1", "-max_len=512", "-len_control=0"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", INSTRUMENTED, kind, __file__, *options],
        capture_output=True,
        text=True,
        timeout=SECONDS + 100,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(re.findall(r"^#(\d+)\s+DONE", done.stderr, re.M)[-1]) > 100, done.stderr[-2000:]


def guided(kind: str, arguments: Sequence[str]) -> None:
    """atheris; its arguments are those of libFuzzer."""
    import tempfile

    import atheris

    with tempfile.TemporaryDirectory() as name, running(Path(name)) as target:
        atheris.Setup(["fuzz", *arguments], fuzzer(target, kind).hypothesis.fuzz_one_input)
        atheris.Fuzz()
