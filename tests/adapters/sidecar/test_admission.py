"""Strategies from the wire: within bounds, compiled, and short answers to long input."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from google.rpc.error_details_pb2 import BadRequest

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.sidecar.admission import Prepared, admitted, prepared
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.wire.errors import Refusal
from midstream.middleware.sampling import AWRS, Mask
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import strategy_pb2 as pb

LIMITS = Limits(particles=10, max_new_tokens=50, rejects=100)
MARK = "Zq"
LONG = MARK * 500


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.from_tokenizer(str(embedded_model_path()))


def _field(refusal: Refusal) -> str:
    assert refusal.code == "INVALID_ARGUMENT"
    (detail,) = refusal.status.details
    found = BadRequest()
    assert detail.Unpack(found)
    (violation,) = found.field_violations
    assert violation.description in refusal.status.message
    return str(violation.field)


def _refused(call: Callable[[], Any]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value


AWRS_ALONE = pb.Sampler(awrs=pb.Awrs())


@pytest.mark.parametrize(
    ("message", "host", "field", "accepted"),
    [
        (pb.Strategy(smc=pb.Smc(particles=11)), "sidecar", "smc.particles", "at most 10"),
        (pb.Strategy(limits=pb.Limits()), "sidecar", "limits.max_new_tokens", "at most 50"),
        (
            pb.Strategy(sampler=AWRS_ALONE, limits=pb.Limits(max_new_tokens=5)),
            "sidecar",
            "sampler.awrs.rejects",
            "must not draw without end",
        ),
        (
            pb.Strategy(
                sampler=pb.Sampler(awrs=pb.Awrs(rejects=101)), limits=pb.Limits(max_new_tokens=5)
            ),
            "sidecar_process",
            "sampler.awrs.rejects",
            "at most 100",
        ),
        (pb.Strategy(law=pb.Law(temperature=0)), "sidecar", "law.temperature", "one row of"),
        (
            pb.Strategy(
                law=pb.Law(top_k=3, truncation="after_mask"),
                sampler=pb.Sampler(awrs=pb.Awrs(rejects=10)),
            ),
            "sidecar_process",
            "law.truncation",
            "mask",
        ),
        (pb.Strategy(smc=pb.Smc(finished="x")), "sidecar", "smc.finished", "'aside'"),
    ],
)
def test_what_is_out_of_bounds_names_field_and_bound(
    message: pb.Strategy, host: str, field: str, accepted: str
) -> None:
    refusal = _refused(lambda: admitted(message, LIMITS, host))
    assert _field(refusal) == f"strategy.{field}"
    assert accepted in refusal.status.message


SHORT = pb.Limits(max_new_tokens=5)


def test_greedy_is_for_rows_that_the_engine_owns() -> None:
    greedy = pb.Strategy(law=pb.Law(temperature=0), limits=SHORT)
    assert admitted(greedy, LIMITS, "sidecar_process").law.temperature == 0
    assert _field(_refused(lambda: admitted(greedy, LIMITS))) == "strategy.law.temperature"


def _prepare(vocabulary: Vocabulary, **fields: Any) -> Prepared:
    strategy = admitted(pb.Strategy(limits=SHORT, **fields), LIMITS)
    return prepared(strategy, vocabulary, LIMITS)


def test_every_sampler_has_a_finite_budget(vocabulary: Vocabulary) -> None:
    digits = pb.Constraint(regex="[0-9]+")
    auto = _prepare(vocabulary, constraint=digits)
    assert (auto.name, auto.sampler) == ("mask", Mask())
    asked = _prepare(vocabulary, constraint=digits, sampler=pb.Sampler(awrs=pb.Awrs(rejects=7)))
    assert (asked.name, asked.sampler, asked.reason) == ("awrs", AWRS(rejects=7), "as asked")
    anything = _prepare(vocabulary)
    assert (anything.name, anything.sampler) == ("awrs", AWRS(rejects=100))
    assert anything.reason


def test_a_sampler_that_cannot_serve_the_constraint(vocabulary: Vocabulary) -> None:
    mask = _refused(lambda: _prepare(vocabulary, sampler=pb.Sampler(name="mask")))
    assert _field(mask) == "strategy.sampler"
    law = pb.Law(top_k=3, truncation="after_mask")
    after = _refused(lambda: _prepare(vocabulary, law=law))
    assert _field(after) == "strategy.law.truncation"
    digits = pb.Constraint(regex="[0-9]+")
    assert _prepare(vocabulary, law=law, constraint=digits).name == "mask"


def _json(schema: Any) -> pb.Constraint:
    return pb.Constraint(json_schema=pb.JsonSchema(json_schema=json.dumps(schema)))


@pytest.mark.parametrize(
    ("constraint", "kind"),
    [
        (pb.Constraint(regex=f"({LONG}"), "regex"),
        (pb.Constraint(regex=f"[{LONG}\\p{{x}}]"), "regex"),
        (pb.Constraint(grammar=f"start: {LONG}"), "grammar"),
        (pb.Constraint(grammar=f"start: @@@{LONG}"), "grammar"),
        (pb.Constraint(grammar=f'start: %json {{"{LONG}": 1'), "grammar"),
        (_json({"type": LONG}), "json_schema"),
        (_json({"$ref": f"#/{LONG}"}), "json_schema"),
        (_json({"type": "string", "pattern": f"({LONG}"}), "json_schema"),
        (_json({"enum": [LONG], "type": "integer"}), "json_schema"),
        (_json([LONG]), "json_schema"),
        (pb.Constraint(json_schema=pb.JsonSchema(json_schema=f"{{{LONG}")), "json_schema"),
        (
            pb.Constraint(
                all_of=pb.AllOf(constraints=[pb.Constraint(regex="a"), _json({"type": LONG})])
            ),
            "all_of",
        ),
    ],
)
def test_what_does_not_compile_is_told_in_few_words_of_the_client(
    vocabulary: Vocabulary, constraint: pb.Constraint, kind: str
) -> None:
    refusal = _refused(lambda: _prepare(vocabulary, constraint=constraint))
    assert _field(refusal) == f"strategy.constraint.{kind}"
    assert len(MARK) * refusal.status.message.count(MARK) <= 80
    assert refusal.status.message.isascii() and refusal.status.message.isprintable()


@pytest.mark.parametrize(
    "message",
    [
        pb.Strategy(sampler=pb.Sampler(name=LONG)),
        pb.Strategy(smc=pb.Smc(resampling=LONG)),
        pb.Strategy(law=pb.Law(truncation=LONG)),
        pb.Strategy(
            constraint=pb.Constraint(
                json_schema=pb.JsonSchema(json_schema="{}", whitespace=LONG + "\x00\n\x1b[31m")
            )
        ),
    ],
)
def test_a_word_that_is_none_is_quoted_in_part(message: pb.Strategy) -> None:
    refusal = _refused(lambda: admitted(message, LIMITS))
    assert 0 < len(MARK) * refusal.status.message.count(MARK) <= 80
    assert refusal.status.message.isprintable()
