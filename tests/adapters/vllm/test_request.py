"""What a request asks for: read, checked, named; no vLLM is needed to know it."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from midstream.adapters.vllm import admission
from midstream.adapters.vllm.admission import Admitted, admit
from midstream.adapters.vllm.request import asked_of, plan_of
from midstream.middleware.errors import ConstraintError, InputError

REGEX = {"constraint": {"regex": "[0-9]+"}}
RESUME = {"run": "r" * 16, "slot": 1, "segment": 2, "generated": 3, "sequence": 9}


@dataclass
class Parameters:
    """The fields of vLLM's SamplingParams that are read."""

    extra_args: dict[str, Any] | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = 16
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bad_words: list[str] | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    min_tokens: int = 0
    structured_outputs: Any = None
    thinking_token_budget: int | None = None
    ignore_eos: bool = False
    trace_decode_token_ids: list[int] | None = None
    others: dict[str, Any] = field(default_factory=dict)


def asking(strategy: Any = REGEX, /, **fields: Any) -> Parameters:
    extra = {key: fields.pop(key) for key in ("id", "vocabulary", "resume") if key in fields}
    return Parameters(extra_args={"midstream": {"strategy": strategy, **extra}}, **fields)


def test_requests_without_a_strategy_are_not_ours() -> None:
    for extra in (None, {}, {"other": 1}):
        params = Parameters(extra_args=extra)
        admit(params)
        assert plan_of(params) is None
        assert params.extra_args == extra


def test_an_object_and_its_json_text_are_the_same() -> None:
    value = {"strategy": REGEX, "id": "a" * 20}
    first = plan_of(Parameters(extra_args={"midstream": value}))
    assert first == plan_of(Parameters(extra_args={"midstream": json.dumps(value)}))
    assert first is not None
    assert first.max_new_tokens == 16


def test_admission_writes_an_id_and_is_asked_twice() -> None:
    params = asking()
    admit(params)
    asked = asked_of(params)
    assert asked is not None
    assert asked.id is not None
    assert len(asked.id) == 32
    admit(params)
    assert asked_of(params) == asked


def test_the_same_id_again_is_refused() -> None:
    admit(asking(id="same-id-of-two-requests"))
    with pytest.raises(InputError, match=r"midstream\.id"):
        admit(asking(id="same-id-of-two-requests"))


def test_ids_are_forgotten_in_time_and_number() -> None:
    admitted = Admitted(remembered=2)
    nonces = [admitted.admit(key, None) for key in ("a", "b", "c", "d")]
    assert len(set(nonces)) == 4
    assert admitted.admit("a", None)
    with pytest.raises(InputError):
        admitted.admit("d", "another")
    at_once = Admitted(seconds=0.0)
    at_once.admit("a", None)
    at_once.admit("a", None)


def test_children_are_told_apart_by_their_seed() -> None:
    params = asking(n=3)
    admit(params)
    assert params.seed == 0
    for child in range(3):
        params.seed = child
        plan = plan_of(params)
        assert plan is not None
        assert plan.child == child
    seeded = asking(n=3, seed=40)
    admit(seeded)
    seeded.seed = 42
    plan = plan_of(seeded)
    assert plan is not None
    assert plan.child == 2


def test_the_law_is_that_of_the_request() -> None:
    strategy = {**REGEX, "law": {"truncation": "target"}}
    plan = plan_of(asking(strategy, temperature=0.7, top_p=0.9, top_k=-1))
    assert plan is not None
    assert (plan.law.temperature, plan.law.top_p, plan.law.top_k) == (0.7, 0.9, 0)
    plan_of(asking({**REGEX, "law": {"temperature": 0.7}}, temperature=0.7))


def test_a_particle_that_goes_on() -> None:
    strategy = {**REGEX, "smc": {"particles": 4}, "limits": {"max_new_tokens": 20}}
    plan = plan_of(asking(strategy, resume=RESUME, max_tokens=8))
    assert plan is not None
    assert plan.max_new_tokens == 20
    assert plan.key == f"{'r' * 16}:1:2"


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (asking(presence_penalty=0.5), "presence_penalty"),
        (asking(frequency_penalty=0.5), "frequency_penalty"),
        (asking(repetition_penalty=1.1), "repetition_penalty"),
        (asking(bad_words=["x"]), "bad_words"),
        (asking(logit_bias={1: 2.0}), "logit_bias"),
        (asking(allowed_token_ids=[1]), "allowed_token_ids"),
        (asking(min_tokens=2), "min_tokens"),
        (asking(structured_outputs=object()), "structured_outputs"),
        (asking(thinking_token_budget=5), "thinking_token_budget"),
        (asking(ignore_eos=True), "ignore_eos"),
        (asking(max_tokens=None), "max_tokens"),
        (asking(top_p=0.9), "midstream.strategy.law.truncation"),
        (asking({"law": {"temperature": 0.5}}), "midstream.strategy.law.temperature"),
        (asking({"smc": {"particles": 2}}), "midstream.strategy.smc.particles"),
        (asking({"limits": {"max_new_tokens": 9}}), "midstream.strategy.limits.max_new_tokens"),
        (asking({"constraint": {"regex": "("}}), "midstream.strategy.constraint.pattern"),
        (asking({"constraint": {"regx": "a"}}), "midstream.strategy.constraint"),
        (asking({"sampler": "best"}), "midstream.strategy.sampler"),
        (asking(5), "midstream.strategy"),
        (asking(id="short"), "midstream.id"),
        (asking(vocabulary="x"), "midstream.vocabulary"),
        (asking(resume={**RESUME, "slot": -1}), "midstream.resume.slot"),
        (asking(resume={**RESUME, "generated": 250}), "midstream.resume.generated"),
        (Parameters(extra_args={"midstream": 7}), "midstream"),
        (Parameters(extra_args={"midstream": "{"}), "midstream"),
        (Parameters(extra_args={"midstream": "[" * 100_000}), "midstream"),
        (Parameters(extra_args={"midstream": " " * 2_000_000}), "midstream"),
        (asking({"constraint": {"choice": ["x" * 60_000]}}), "midstream"),
        (
            asking({"constraint": {"all_of": [{"regex": "a*"}] * 200}}),
            "midstream.strategy.constraint",
        ),
        (Parameters(extra_args={"midstream": {}}), "midstream.strategy"),
        (Parameters(extra_args={"midstream": {"strategy": {}, "seed": 1}}), "midstream.seed"),
    ],
)
def test_what_cannot_be_done_is_named(params: Parameters, field: str) -> None:
    with pytest.raises(InputError) as caught:
        admit(params)
    assert caught.value.argument == field


SIZE = 31_000
WORST: dict[str, dict[str, Any]] = {
    "choices": {"choice": [f"{i:x}" for i in range(SIZE // 9)]},
    "one long pattern": {"regex": "a" * SIZE},
    "a pattern at the limit": {"regex": "|".join(f"w{i:x}" for i in range(500))[:980]},
    "a small pattern, a large automaton": {"regex": "((a|b|c|d|e){0,200}[a-z ]{0,30}){1,4}(x|y)"},
    "properties": {
        "json_schema": {
            "type": "object",
            "properties": {f"p{i}": {"type": "string"} for i in range(SIZE // 28)},
        }
    },
    "a schema at the limit": {"json_schema": {"enum": [f"v{i:x}" for i in range(420)]}},
    "counts in a schema": {
        "json_schema": {
            "type": "array",
            "items": {"type": "string", "pattern": "^(a|b){1,2000}$"},
            "minItems": 2000,
        }
    },
    "a large grammar": {"grammar": "start: " + " | ".join(f'"w{i:x}"' for i in range(2500))},
    "a terminal that is dear": {
        "grammar": "start: A\nA: /((a|b|c|d|e){0,3000}[a-z ]{0,30}){1,40}(x|y)/"
    },
    "all of several": {"all_of": [{"regex": f"[a-z]{{1,{i + 1}}}"} for i in range(36)]},
    "all of a hundred schemas": {"all_of": [{"json_schema": {"type": "object"}}] * 100},
}


@pytest.mark.parametrize("kind", WORST)
def test_admission_takes_under_five_milliseconds(kind: str) -> None:
    """It runs in the event loop of a server. The least of a few first times: each asks anew."""
    taken = []
    for again in range(8):
        constraint = WORST[kind]
        if "grammar" in constraint:
            constraint = {"grammar": constraint["grammar"] + f"\n// {again}"}
        text = json.dumps({"strategy": {"constraint": constraint, "seed": again}})
        params = Parameters(extra_args={"midstream": text})
        begin = time.perf_counter()
        admit(params)
        taken.append(time.perf_counter() - begin)
    assert min(taken) < 0.005, taken


BAD = {"grammar": "start: ("}


class Later:
    """Compiles nothing, and says so after some seconds: of the clock, or of processor time too."""

    def __init__(self, seconds: float, *, busy: bool) -> None:
        self._seconds, self._busy = seconds, busy

    def start(self, constraint: Any) -> Future[Any]:
        told: Future[Any] = Future()

        def work() -> None:
            end = time.monotonic() + self._seconds
            while self._busy and time.monotonic() < end:
                pass
            time.sleep(max(end - time.monotonic(), 0.0))
            told.set_exception(ConstraintError("lark", "start: (", "one that compiles"))

        threading.Thread(target=work).start()
        return told


def test_a_busy_machine_does_not_let_a_bad_grammar_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for is processor time: a grammar whose turn comes late is still refused."""

    def ask() -> None:
        admit(Parameters(extra_args={"midstream": {"strategy": {"constraint": BAD}}}))

    monkeypatch.setattr(admission, "_over_bytes", Later(0.03, busy=False))
    with pytest.raises(ConstraintError, match=r"strategy\.constraint\.lark"):
        ask()
    monkeypatch.setattr(admission, "_over_bytes", Later(1.0, busy=True))
    begin = time.monotonic()
    ask()  # the control: one that is at work for long is left to the engine
    assert time.monotonic() - begin < 0.5
