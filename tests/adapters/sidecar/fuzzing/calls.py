"""A running server, how its calls may end, and calls of Decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from fuzzing.protos import a_generate, sent
from fuzzing.rules import ANY, RULES, check_summary, check_text
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from hypothesis import strategies as st

from midstream.adapters.sidecar.wire.strategy import strategy_message
from midstream.middleware.strategy import Strategy
from midstream.proto.v1 import decoding_pb2

CALL_SECONDS = 30.0
"""A call that takes longer hangs."""

LONGEST_MESSAGE = 2000

CALM = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
"""How a call may end, whatever was sent."""


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
