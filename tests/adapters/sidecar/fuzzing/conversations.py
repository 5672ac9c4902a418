"""Streams of LogitsProcessing, step by step, as an engine leads them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from fuzzing.calls import CALL_SECONDS, Target
from fuzzing.protos import REGION, REGION_BYTES, ROW, a_handshake, sent
from fuzzing.rules import (
    ANY,
    EOS,
    RULES,
    RUNNING,
    TOKENS,
    WITHOUT_WEIGHT,
    Rule,
    check_summary,
    check_text,
)
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from midstream.adapters.sidecar.wire.tensors import tensor_of
from midstream.kernels.bitmask import unpack_mask
from midstream.proto.v1 import logits_processing_pb2 as pb
from midstream.proto.v1 import tensor_pb2


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
