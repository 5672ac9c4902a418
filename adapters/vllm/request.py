"""What a request asks of midstream: read from vLLM's SamplingParams, and checked.

`extra_args["midstream"]` (over HTTP `vllm_xargs`) is an object, or JSON text of one:

    {"strategy": {...}, "id": "...", "vocabulary": "<fingerprint>", "resume": {...}}

Only `strategy` must be there. Admission fills in the rest and never compiles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.law import Law
from midstream.middleware.strategy import Strategy
from midstream.middleware.strategy_errors import strategy_error

ARGUMENT = "midstream"
LONGEST_TEXT = 32_000
"""Characters of a request as JSON text: it is read in a server's event loop."""

Id = Annotated[str, Field(strict=True, min_length=16, max_length=128, pattern=r"^[\w.-]+$")]
Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 32)]


class Resume(BaseModel):
    """A particle that goes on: the last `generated` ids of the prompt are its constrained text.

    (run, slot, segment) names the piece of work; `sequence` is its stream's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: Id
    slot: Count
    segment: Count
    generated: Count
    sequence: Count


class Asked(BaseModel):
    """The object under `midstream`. base_seed and admitted are set at admission.

    begun: hex of the bytes with which the constrained text has begun already: what the last token
    of a healed prompt spells beyond the user's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    strategy: dict[str, Any]
    id: Id | None = None
    vocabulary: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    resume: Resume | None = None
    begun: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){0,1024}$")] = ""
    base_seed: Annotated[int, Field(strict=True)] | None = None
    admitted: str | None = None


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """How one request is decoded.

    key: of its records. child: which of `n` it is. max_new_tokens: from the first constrained
    token on. begun: bytes of the constrained text that the prompt ends in.
    """

    key: str
    strategy: Strategy
    law: Law
    max_new_tokens: int
    child: int
    vocabulary: str | None
    resume: Resume | None
    begun: bytes = b""


def asked_of(params: Any) -> Asked | None:
    """What a request asks for; None where it asks for nothing. Raises InputError."""
    extra = params.extra_args
    if not extra or ARGUMENT not in extra:
        return None
    value = extra[ARGUMENT]
    if isinstance(value, str):
        value = _json(value)
    elif isinstance(value, Mapping):
        _check_length(json.dumps(value))
    if not isinstance(value, Mapping):
        accepted = 'an object, or JSON text of one: {"strategy": {...}}'
        raise StrategyError(ARGUMENT, type(value).__name__, accepted)
    try:
        return Asked.model_validate(value)
    except ValidationError as error:
        fault = strategy_error(error, {"": Asked, "resume": Resume})
        raise type(fault)(f"{ARGUMENT}.{fault.argument}", fault.got, fault.accepted) from None


def plan_of(params: Any) -> RequestPlan | None:
    """The plan of a request; None where it asks for nothing. Raises InputError."""
    asked = asked_of(params)
    return None if asked is None else plan_from(asked, params)


def plan_from(asked: Asked, params: Any) -> RequestPlan:
    """The plan of a request that asks for this. Raises InputError."""
    try:
        strategy = Strategy(**asked.strategy)
    except InputError as fault:
        name = f"{ARGUMENT}.strategy.{fault.argument}"
        raise type(fault)(name, fault.got, fault.accepted) from None
    _check_combination(params, strategy, asked.resume)
    base = asked.base_seed if asked.base_seed is not None else params.seed
    child = 0 if params.seed is None or base is None else params.seed - base
    resume = asked.resume
    limit = params.max_tokens if resume is None else strategy.limits.max_new_tokens
    key = asked.id or ""
    if resume is not None:
        key = f"{resume.run}:{resume.slot}:{resume.segment}"
    law = _law(params, strategy)
    begun = bytes.fromhex(asked.begun)
    return RequestPlan(key, strategy, law, limit, child, asked.vocabulary, resume, begun)


def _json(text: str) -> Any:
    _check_length(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StrategyError(ARGUMENT, text[:80], f"valid JSON ({error})") from None


def _check_length(text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise StrategyError(ARGUMENT, f"{len(text)} characters", f"at most {LONGEST_TEXT}")


def _law(params: Any, strategy: Strategy) -> Law:
    """The law that the engine's own parameters say; those that the strategy names must agree."""
    top_k = max(int(params.top_k), 0)
    numbers = [float(getattr(params, name)) for name in ("temperature", "top_p", "min_p")]
    temperature, top_p, min_p = numbers
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for name in strategy.law.model_fields_set & given.keys():
        asked = getattr(strategy.law, name)
        if asked != given[name]:
            accepted = f"{given[name]}, as SamplingParams.{name} says, or no such field"
            raise StrategyError(f"{ARGUMENT}.strategy.law.{name}", asked, accepted)
    try:
        return Law(temperature, top_k, top_p, min_p, strategy.law.truncation)
    except InputError as fault:
        name = f"{ARGUMENT}.strategy.law.{fault.argument}"
        raise type(fault)(name, fault.got, fault.accepted) from None


_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "bad_words": (None, []),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None,),
    "min_tokens": (0,),
    "structured_outputs": (None,),
    "thinking_token_budget": (None,),
    "ignore_eos": (False,),
    "trace_decode_token_ids": (None,),
}
"""What acts on the law or on a forced token, and the values with which it does nothing."""


def _check_combination(params: Any, strategy: Strategy, resume: Resume | None) -> None:
    for name, neutral in _NEUTRAL.items():
        value = getattr(params, name, neutral[0])
        if value not in neutral:
            accepted = f"{neutral[0]!r} together with a midstream strategy: it would change its law"
            raise StrategyError(name, value, accepted)
    if params.max_tokens is None or params.max_tokens < 1:
        raise StrategyError("max_tokens", params.max_tokens, "a number, at least 1")
    limits = strategy.limits
    named = "max_new_tokens" in limits.model_fields_set
    if resume is None:
        if strategy.smc.particles > 1:
            accepted = "1: particles go on from each other between requests; use VllmHost"
            raise StrategyError(
                f"{ARGUMENT}.strategy.smc.particles", strategy.smc.particles, accepted
            )
        if named and limits.max_new_tokens != params.max_tokens:
            accepted = f"{params.max_tokens}, as SamplingParams.max_tokens says, or no such field"
            field = f"{ARGUMENT}.strategy.limits.max_new_tokens"
            raise StrategyError(field, limits.max_new_tokens, accepted)
    elif resume.generated + params.max_tokens > limits.max_new_tokens:
        got = f"{resume.generated} generated and max_tokens {params.max_tokens}"
        accepted = f"together at most the strategy's limits.max_new_tokens, {limits.max_new_tokens}"
        raise StrategyError(f"{ARGUMENT}.resume.generated", got, accepted)
    strategy.validate_for("vllm")
