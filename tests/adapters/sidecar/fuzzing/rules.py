"""Constraints over a few tokens, and what a text of each must be, in words of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from midstream.proto.v1 import status_pb2

TOKENS = [b"a", b"b", b"ab", b"ba", b"aab", b"bb", b'"', b"true", b"tr", b"ue", b"", b""]
EOS = [10, 11]


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

ANY = RULES[-1]

RUNNING, FINISHED = status_pb2.SEQUENCE_STATUS_RUNNING, status_pb2.SEQUENCE_STATUS_FINISHED
WITHOUT_WEIGHT = (status_pb2.SEQUENCE_STATUS_DEAD, status_pb2.SEQUENCE_STATUS_EXHAUSTED)


def check_text(rule: Rule, text: bytes, status: int, log_weight: float) -> None:
    """What a sequence has must be what the constraint allows; without it, no weight."""
    assert not math.isnan(log_weight)
    if status in WITHOUT_WEIGHT:
        assert log_weight == -math.inf
    else:
        assert (rule.full if status == FINISHED else rule.begun)(text), (rule.constraint, text)


def check_summary(rule: Rule, spelled: Sequence[bytes], summary: status_pb2.Summary) -> None:
    """Each particle by its tokens."""
    assert summary.particles and not math.isnan(summary.log_evidence)
    for each in summary.particles:
        text = b"".join(spelled[token] for token in each.token_ids)
        assert text == each.text
        check_text(rule, text, each.status, each.log_weight)
