"""Requests from Python's values, and values from what a server tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from midstream.adapters.sidecar.wire.results import (
    Outcome,
    ResamplingEvent,
    outcome,
    resampling_event,
    status_name,
)
from midstream.adapters.sidecar.wire.strategy import strategy_message
from midstream.middleware.constraints import (
    AllOf,
    Choice,
    Grammar,
    JsonSchema,
    Regex,
    as_constraint,
)
from midstream.middleware.draw import Status
from midstream.middleware.errors import ConstraintError, InputError, StrategyError
from midstream.middleware.strategy import Strategy
from midstream.proto.v1 import decoding_pb2 as pb
from midstream.proto.v1 import models_pb2

Prompt: TypeAlias = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model of a server; see proto/midstream/v1/models.proto."""

    model: str
    host: str
    vocabulary_size: int
    vocabulary_fingerprint: str
    eos_ids: tuple[int, ...]
    max_tokens: int
    is_default: bool


@dataclass(frozen=True, slots=True)
class StartedEvent:
    """The request was accepted and compiled. overshoot, log_cover: of a healed prompt."""

    model: str
    prompt_token_ids: tuple[int, ...]
    vocabulary_fingerprint: str
    overshoot: bytes = b""
    log_cover: float | None = None


@dataclass(frozen=True, slots=True)
class DrawnToken:
    """What one particle drew in a step. token: -1 where it died. log_weight: of the particle."""

    particle: int
    token: int
    data: bytes
    log_weight: float
    status: Status


@dataclass(frozen=True, slots=True)
class TokensEvent:
    """One step. position: how many tokens had been drawn before."""

    position: int
    tokens: tuple[DrawnToken, ...]


Event: TypeAlias = StartedEvent | TokensEvent | ResamplingEvent
OnEvent: TypeAlias = Callable[[Event], None]


def built_strategy(strategy: Strategy | Mapping[str, Any] | None, constraint: Any) -> Strategy:
    """A strategy with a constraint.

    strategy: one, or its data. constraint: whatever `as_constraint` takes, or its data, None for
    the strategy's own.
    Raises StrategyError and ConstraintError, for a Predicate too: code does not go over the wire.
    """
    if not isinstance(strategy, Strategy):
        strategy = Strategy(**(strategy or {}))
    if constraint is None:
        return strategy
    if strategy.constraint is not None:
        accepted = "one of constraint= and the strategy's own"
        raise StrategyError("constraint", "two constraints", accepted)
    data = dict(constraint) if isinstance(constraint, Mapping) else constraint_data(constraint)
    return Strategy(**{**strategy.model_dump(exclude_unset=True), "constraint": data})


def with_particles(strategy: Strategy) -> Strategy:
    """The same strategy, which says that it is of particles."""
    if "smc" in strategy.model_fields_set:
        return strategy
    return strategy.model_copy(update={"smc": strategy.smc})


def without_particles(strategy: Strategy) -> Strategy:
    """The strategy. Raises StrategyError for one of particles."""
    if "smc" in strategy.model_fields_set:
        raise StrategyError("smc", strategy.smc, "none: `particles(...)` is for particles")
    return strategy


def constraint_data(constraint: Any) -> dict[str, Any]:
    """A constraint as data. ConstraintError for what is none, and for what is code."""
    one = as_constraint(constraint)
    if isinstance(one, Regex):
        return {"regex": one.pattern}
    if isinstance(one, JsonSchema):
        return {"json_schema": json.loads(one.schema), "whitespace": one.whitespace}
    if isinstance(one, Grammar):
        return {"grammar": one.lark}
    if isinstance(one, Choice):
        return {"choice": [_text(item) for item in one.items]}
    if isinstance(one, AllOf):
        return {"all_of": [constraint_data(each) for each in one.constraints]}
    accepted = "a constraint that is data: a Predicate is code, which no server takes"
    raise ConstraintError("constraint", one, accepted)


def _text(item: str | bytes) -> str:
    try:
        return item if isinstance(item, str) else item.decode()
    except UnicodeDecodeError:
        raise ConstraintError("constraint", item, "choices that are UTF-8") from None


def generate_request(
    prompt: Prompt, strategy: Strategy, *, model: str, occurrence: int, events: bool
) -> pb.GenerateRequest:
    """The request. events: whether to be told of what happens besides the summary."""
    request = pb.GenerateRequest(
        model=model, strategy=strategy_message(strategy), occurrence=occurrence
    )
    if isinstance(prompt, str):
        request.text = prompt
    else:
        try:
            request.token_ids.ids.extend(prompt)
        except (TypeError, ValueError):
            raise InputError("prompt", prompt, "a text, or ids from 0 on") from None
    if not events:
        request.events.append(pb.EVENT_KIND_NONE)
    return request


def read_event(message: pb.GenerateEvent) -> Event | Outcome | None:
    """The value of an event; None for one that this version does not know."""
    kind = message.WhichOneof("event")
    if kind == "started":
        one = message.started
        ids = tuple(one.prompt_token_ids)
        log_cover = one.log_cover if one.HasField("log_cover") else None
        return StartedEvent(one.model, ids, one.vocabulary_fingerprint, one.overshoot, log_cover)
    if kind == "tokens":
        return TokensEvent(
            message.tokens.position,
            tuple(
                DrawnToken(
                    each.particle,
                    each.token,
                    each.text,
                    each.log_weight,
                    status_name(each.status),
                )
                for each in message.tokens.tokens
            ),
        )
    if kind == "resampling":
        return resampling_event(message.resampling)
    return outcome(message.summary) if kind == "summary" else None


def model_info(message: models_pb2.Model) -> ModelInfo:
    """The value of a model's message."""
    return ModelInfo(
        model=message.model,
        host=message.host,
        vocabulary_size=message.vocabulary_size,
        vocabulary_fingerprint=message.vocabulary_fingerprint,
        eos_ids=tuple(message.eos_ids),
        max_tokens=message.max_tokens,
        is_default=message.is_default,
    )
