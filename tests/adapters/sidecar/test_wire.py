"""Messages from values and back: strategies, tensors, results, errors."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ResourceInfo, RetryInfo
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.adapters.sidecar.wire.errors import (
    Refusal,
    exhausted,
    invalid,
    not_found,
    quoted,
    unavailable,
)
from midstream.adapters.sidecar.wire.results import (
    STATUSES,
    outcome,
    resampling_event,
    resampling_message,
    status_name,
    summary_message,
)
from midstream.adapters.sidecar.wire.strategy import strategy_from, strategy_message
from midstream.adapters.sidecar.wire.tensors import DTYPES, array_from, tensor_of
from midstream.middleware.errors import ConstraintError, InputError, StrategyError
from midstream.middleware.particles import Particle, Prefix, SMCResult
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import status_pb2, tensor_pb2
from midstream.proto.v1 import strategy_pb2 as pb

FULL: dict[str, Any] = {
    "constraint": {
        "all_of": [
            {"regex": "a+"},
            {"choice": ["a", "é", ""]},
            {"grammar": 'start: "a"'},
            {"json_schema": {"b": {"type": "null"}, "a": 1.5}, "whitespace": "flexible"},
            {"all_of": [{"json_schema": {}}]},
        ]
    },
    "sampler": {"awrs": {"accepts": 6, "rejects": 100, "estimator": "recursive"}},
    "smc": {
        "particles": 12,
        "ess_threshold": 0.25,
        "resampling": "residual",
        "resample_every": 3,
        "finished": "together",
    },
    "law": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "truncation": "target"},
    "seed": 2**64 - 1,
    "limits": {"max_new_tokens": 40},
}

_TEXT = st.text(max_size=8)
_CONSTRAINTS = st.recursive(
    st.one_of(
        st.builds(lambda text: {"regex": text}, _TEXT),
        st.builds(lambda text: {"grammar": text}, _TEXT),
        st.builds(lambda texts: {"choice": texts}, st.lists(_TEXT, min_size=1, max_size=3)),
        st.builds(
            lambda schema: {"json_schema": schema},
            st.dictionaries(_TEXT, st.integers(), max_size=3),
        ),
    ),
    lambda inner: st.builds(lambda parts: {"all_of": parts}, st.lists(inner, min_size=1)),
    max_leaves=4,
)
_STRATEGIES = st.fixed_dictionaries(
    {},
    optional={
        "constraint": _CONSTRAINTS,
        "sampler": st.sampled_from(["auto", "mask", {"awrs": {}}, {"awrs": {"rejects": 2}}]),
        "smc": st.fixed_dictionaries(
            {},
            optional={
                "particles": st.integers(1, 2**32 - 1),
                "ess_threshold": st.floats(0, 1),
                "finished": st.sampled_from(["aside", "together"]),
            },
        ),
        "law": st.fixed_dictionaries({}, optional={"temperature": st.floats(1e-3, 100)}),
        "seed": st.integers(0, 2**64 - 1),
        "limits": st.fixed_dictionaries({}, optional={"max_new_tokens": st.integers(1, 10**6)}),
    },
)


def _there_and_back(fields: dict[str, Any]) -> None:
    strategy = Strategy(**fields)
    sent = pb.Strategy.FromString(strategy_message(strategy).SerializeToString())
    back = strategy_from(sent)
    assert back == strategy
    assert back.model_dump(exclude_unset=True) == strategy.model_dump(exclude_unset=True)


@pytest.mark.parametrize("fields", [FULL, {}, {"sampler": "mask"}, {"smc": {}}, {"seed": 0}])
def test_a_strategy_comes_back_as_it_went(fields: dict[str, Any]) -> None:
    _there_and_back(fields)


@settings(max_examples=200, deadline=None)
@given(_STRATEGIES)
def test_any_strategy_comes_back_as_it_went(fields: dict[str, Any]) -> None:
    _there_and_back(fields)


def test_what_is_not_set_has_its_default() -> None:
    assert strategy_from(pb.Strategy()) == Strategy()
    parts = pb.Strategy(smc=pb.Smc(), law=pb.Law(), limits=pb.Limits())
    assert strategy_from(parts) == Strategy()
    zero = strategy_from(pb.Strategy(smc=pb.Smc(ess_threshold=0.0)))
    assert zero.smc.ess_threshold == 0.0, "0 that was set is no default"


def test_the_order_of_a_schemas_keys_is_kept() -> None:
    text = '{"properties": {"z": {}, "a": {}}}'
    constraint = pb.Constraint(json_schema=pb.JsonSchema(json_schema=text))
    strategy = strategy_from(pb.Strategy(constraint=constraint))
    assert strategy.model_dump()["constraint"]["json_schema"] == json.loads(text)
    assert list(strategy.model_dump()["constraint"]["json_schema"]["properties"]) == ["z", "a"]


def _constraint(**kind: Any) -> pb.Strategy:
    return pb.Strategy(constraint=pb.Constraint(**kind))


@pytest.mark.parametrize(
    ("message", "field", "accepted"),
    [
        (pb.Strategy(constraint=pb.Constraint()), "constraint", '"regex"'),
        (pb.Strategy(sampler=pb.Sampler()), "sampler", '"mask"'),
        (pb.Strategy(sampler=pb.Sampler(name="greedy")), "sampler", '"mask"'),
        (pb.Strategy(smc=pb.Smc(particles=0)), "smc.particles", "equal to 1"),
        (pb.Strategy(smc=pb.Smc(ess_threshold=math.nan)), "smc.ess_threshold", "finite"),
        (pb.Strategy(smc=pb.Smc(resampling="best")), "smc.resampling", "'systematic'"),
        (pb.Strategy(law=pb.Law(temperature=math.inf)), "law.temperature", "finite"),
        (pb.Strategy(law=pb.Law(top_p=0.5)), "law.truncation", "'after_mask'"),
        (pb.Strategy(limits=pb.Limits(max_new_tokens=0)), "limits.max_new_tokens", "equal to 1"),
        (
            pb.Strategy(sampler=pb.Sampler(awrs=pb.Awrs(accepts=1))),
            "sampler.awrs.accepts",
            "equal to 2",
        ),
        (_constraint(choice=pb.Choice()), "constraint.choice", "not empty"),
        (_constraint(json_schema=pb.JsonSchema()), "constraint.json_schema", "JSON"),
        (_constraint(json_schema={"json_schema": "[1]"}), "constraint.json_schema", "an object"),
        (_constraint(json_schema={"json_schema": "NaN"}), "constraint.json_schema", "no number"),
        (
            _constraint(json_schema={"json_schema": "[" * 100_000}),
            "constraint.json_schema",
            "too deep",
        ),
        (
            _constraint(all_of={"constraints": [{"regex": "a"}, {"choice": {}}]}),
            "constraint.all_of.1.choice",
            "not empty",
        ),
    ],
)
def test_errors_name_the_path_of_the_field(message: pb.Strategy, field: str, accepted: str) -> None:
    with pytest.raises(StrategyError) as caught:
        strategy_from(message)
    assert caught.value.argument == field
    assert accepted in caught.value.accepted


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"\x98\x06\x01", "strategy"),
        (b"\x1a\x03\x98\x06\x01", "smc"),
        (b"\x0a\x03\x98\x06\x01", "constraint"),
        (b"\x0a\x05\x2a\x03\x98\x06\x01", "constraint.all_of"),
        (b"\x12\x05\x12\x03\x98\x06\x01", "sampler.awrs"),
    ],
)
def test_a_field_of_a_later_version_is_not_left_out_in_silence(data: bytes, field: str) -> None:
    with pytest.raises(StrategyError, match="field number 99, which this version") as caught:
        strategy_from(pb.Strategy.FromString(data))
    assert caught.value.argument == field


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_comes_back_as_it_went(dtype: int) -> None:
    values = np.array([[0.0, 1.0, 2.5], [3.0, 4.0, 192.0]])
    if DTYPES[dtype].kind in "ui" and dtype != tensor_pb2.DTYPE_BFLOAT16:
        values = np.floor(values)
    tensor = tensor_of(values, dtype)
    assert len(tensor.inline) == 6 * DTYPES[dtype].itemsize
    back = array_from(tensor, None, name="x", dtype=dtype, shape=(2, 3))
    assert back.shape == (2, 3)
    assert np.array_equal(back, values)
    assert not back.flags.writeable or dtype in (
        tensor_pb2.DTYPE_FLOAT16,
        tensor_pb2.DTYPE_BFLOAT16,
    )


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "uint32", "int64"])
def test_the_type_of_an_array_is_its_own_by_default(name: str) -> None:
    assert tensor_of(np.zeros(3, name)).dtype == getattr(tensor_pb2, f"DTYPE_{name.upper()}")
    swapped = np.arange(3).astype(np.dtype(name).newbyteorder(">"))
    tensor = tensor_of(swapped)
    back = array_from(tensor, None, name="x", dtype=tensor.dtype, shape=(3,))
    assert np.array_equal(back, [0, 1, 2])


def test_bfloat16_rounds_to_nearest_even_and_keeps_what_is_not_finite() -> None:
    one = np.float32(1.0)
    step = np.float32(2.0**-7)
    values = np.array([one + step / 2, one + 3 * step / 2, one + step * 0.51], np.float32)
    special = np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)
    dtype = tensor_pb2.DTYPE_BFLOAT16
    back = array_from(tensor_of(values, dtype), None, name="x", dtype=dtype, shape=(3,))
    assert back.tolist() == [1.0, 1.0 + 2 * step, 1.0 + step]
    back = array_from(tensor_of(special, dtype), None, name="x", dtype=dtype, shape=(4,))
    assert np.isnan(back[0]) and back[1:3].tolist() == [np.inf, -np.inf]
    assert math.copysign(1.0, back[3]) == -1.0


FLOAT32 = tensor_pb2.DTYPE_FLOAT32


@pytest.mark.parametrize(
    ("change", "field", "accepted"),
    [
        ({"dtype": "DTYPE_FLOAT64"}, "step.logits.dtype", "DTYPE_FLOAT32"),
        ({"dtype": 77}, "step.logits.dtype", "DTYPE_FLOAT32"),
        ({"dtype": "DTYPE_UNSPECIFIED"}, "step.logits.dtype", "DTYPE_FLOAT32"),
        ({"shape": [3, 2]}, "step.logits.shape", "[2, 3]"),
        ({"shape": [6]}, "step.logits.shape", "[2, 3]"),
        ({"shape": [2**63, 2**63, 2**63]}, "step.logits.shape", "[2, 3]"),
        ({"shape": []}, "step.logits.shape", "[2, 3]"),
        ({"inline": b"\0" * 23}, "step.logits.inline", "24"),
        ({"inline": b"\0" * 28}, "step.logits.inline", "24"),
        ({"inline": None}, "step.logits.data", "inline bytes"),
        ({"inline": None, "shared_memory": {"region": "a"}}, "step.logits.shared_memory", "inline"),
    ],
)
def test_a_tensor_that_does_not_fit_names_what_does(
    change: dict[str, Any], field: str, accepted: str
) -> None:
    fields = {"dtype": "DTYPE_FLOAT32", "shape": [2, 3], "inline": b"\0" * 24, **change}
    tensor = tensor_pb2.Tensor(**fields)
    with pytest.raises(InputError) as caught:
        array_from(tensor, None, name="step.logits", dtype=FLOAT32, shape=(2, 3))
    assert caught.value.argument == field
    assert accepted in caught.value.accepted


def test_shared_memory_is_read_where_the_tensor_says() -> None:
    asked: list[tuple[str, int, int]] = []

    class Regions:
        def read(self, region: str, offset: int, size_bytes: int) -> bytes:
            asked.append((region, offset, size_bytes))
            return np.arange(6, dtype=np.float32).tobytes()

    tensor = tensor_pb2.Tensor(
        dtype="DTYPE_FLOAT32", shape=[2, 3], shared_memory={"region": "a", "offset": 64}
    )
    found = array_from(tensor, Regions(), name="x", dtype=FLOAT32, shape=(2, 3))
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert asked == [("a", 64, 24)]


def _result() -> SMCResult:
    vocabulary = Vocabulary([b"a", b"b", b""], eos_ids=[2], special_ids=[2])
    particles = []
    for index, (status, weight) in enumerate([("finished", -1.0), ("dead", -math.inf)]):
        particle = Particle(vocabulary, Prefix((0, 1, 2), b"ab\xff", None, 0), index)
        particle.status = status  # type: ignore[assignment]
        particle.log_weight = weight
        particle.reason = "nothing is allowed" if status == "dead" else ""
        particle.checks = 7
        particles.append(particle)
    return SMCResult(tuple(particles), ((0, 0), (0, 1)), (1.5, 2.0), True)


def test_a_result_comes_back_as_it_went() -> None:
    result = _result()
    message = summary_message(result, sampler="awrs", sampler_reason="as asked", seed=2**64 - 1)
    found = outcome(status_pb2.Summary.FromString(message.SerializeToString()))
    assert found.log_evidence == result.log_evidence
    assert found.ancestry == result.ancestry
    assert found.ess == result.ess
    assert (found.proper, found.sampler, found.sampler_reason) == (True, "awrs", "as asked")
    assert (found.seed, found.status) == (2**64 - 1, "finished")
    assert found.posterior() == result.posterior() == {"ab\ufffd": 1.0}
    for ours, theirs in zip(found.particles, result.particles, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.data == theirs.text_bytes
        assert ours.text == theirs.text
        assert ours.log_weight == theirs.log_weight
        assert (ours.status, ours.reason, ours.checks) == (theirs.status, theirs.reason, 7)


def test_a_resampling_comes_back_as_it_went() -> None:
    event = resampling_event(resampling_message(3, [0, 0, 2], 1.25))
    assert (event.position, event.ancestors, event.ess) == (3, (0, 0, 2), 1.25)


def test_every_status_has_a_word() -> None:
    values = {v for v in status_pb2.SequenceStatus.values() if v}
    assert {STATUSES[status_name(value)] for value in values} == values
    with pytest.raises(ValueError, match="status 99"):
        status_name(99)


def _details(refusal: Refusal, kind: Any) -> Any:
    (detail,) = refusal.status.details
    found = kind()
    assert detail.Unpack(found)
    return found


def test_bad_input_names_the_field() -> None:
    refusal = invalid(InputError("shape", [1], "[2]"), "step.logits")
    assert refusal.status.code == code_pb2.INVALID_ARGUMENT
    assert refusal.status.message == "step.logits.shape: got [1]; accepted: [2]"
    (violation,) = _details(refusal, BadRequest).field_violations
    assert violation.field == "step.logits.shape"
    assert violation.description == "got [1]; accepted: [2]"


def test_what_to_try_again_says_when() -> None:
    for refusal, code in (
        (exhausted("busy", 0.25), "RESOURCE_EXHAUSTED"),
        (unavailable("x"), "UNAVAILABLE"),
    ):
        assert refusal.code == code
        assert 0.0 < _details(refusal, RetryInfo).retry_delay.ToMilliseconds() <= 1000
    assert _details(exhausted("busy", 0.25), RetryInfo).retry_delay.ToMilliseconds() == 250


def test_not_found_says_what_there_is() -> None:
    refusal = not_found("model", "x\n" * 100, "one of a, b")
    assert refusal.code == "NOT_FOUND"
    found = _details(refusal, ResourceInfo)
    assert (found.resource_type, found.description) == ("model", "one of a, b")
    assert len(found.resource_name) <= 80


@given(st.text(), st.integers(10, 100))
def test_a_quotation_is_short_printable_ascii(text: str, limit: int) -> None:
    shown = quoted(text, limit)
    assert len(shown) <= limit
    assert shown.isascii() and (shown.isprintable() or not shown)
    if text.isascii() and text.isprintable() and len(text) <= limit and "\\" not in text:
        assert shown == text


@pytest.mark.parametrize(
    "error",
    [
        StrategyError("constraint.choice", "S" * 1000, "a list"),
        ConstraintError("schema", "S" * 1000, f"a JSON Schema (Invalid type: {'S' * 1000})"),
        ConstraintError("schema", "x", f"a JSON Schema (unexpected ({'S' * 1000}))"),
        InputError("name", ["S" * 1000], "letters"),
    ],
)
def test_a_status_quotes_at_most_80_characters(error: InputError) -> None:
    assert invalid(error).status.message.count("S") <= 80 + 1  # the S of "JSON Schema"
