"""What `Bytes` does for one request, apart from the wire's calls: checks, work, messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from midstream.adapters.sidecar.admission import admitted, prepared
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.metrics import Metrics
from midstream.adapters.sidecar.models import ServedModel
from midstream.adapters.sidecar.wire.errors import invalid, refused
from midstream.adapters.sidecar.wire.results import STATUSES
from midstream.middleware.bytes.beyond import AnyIds
from midstream.middleware.bytes.healing import Healed
from midstream.middleware.bytes.law import Target
from midstream.middleware.bytes.model import ByteModel
from midstream.middleware.errors import InputError
from midstream.middleware.law import Law
from midstream.middleware.matcher import Matcher
from midstream.middleware.random import sequence_of
from midstream.proto.v1 import bytes_pb2 as pb
from midstream.proto.v1 import strategy_pb2 as strategy_pb

METRICS = "bytes"

_TARGETS: dict[Target, pb.ByteTarget] = {
    "canonical": pb.BYTE_TARGET_CANONICAL,
    "all": pb.BYTE_TARGET_ALL,
}
_MOST = 16


def next_bytes(
    model: ServedModel, request: pb.NextByteRequest, limits: Limits
) -> pb.NextByteResponse:
    """The laws after the texts of a request. Raises Refusal for what is wrong with it."""
    temperature = request.byte_temperature if request.HasField("byte_temperature") else 1.0
    made = _model(model, request.reading, request.texts, limits, byte=temperature)
    contexts = _contexts(model, request.texts)
    laws = made.laws([each.text for each in request.texts], contexts=contexts)
    return pb.NextByteResponse(
        laws=[
            pb.ByteLaw(
                p=law.p.tolist(),
                log_mass=law.log_mass,
                log_pruned=law.log_pruned,
                target=_TARGETS[law.target],
                status=STATUSES[law.status],
                undecided=model.bytes.undecided,
            )
            for law in laws
        ]
    )


def scores(model: ServedModel, request: pb.ScoreRequest, limits: Limits) -> pb.ScoreResponse:
    """The scores of the texts of a request."""
    made = _model(model, request.reading, request.texts, limits)
    return pb.ScoreResponse(
        scores=[
            _score(made, each.text, context)
            for each, context in zip(request.texts, _contexts(model, request.texts), strict=True)
        ]
    )


def covers(model: ServedModel, request: pb.CoverRequest, limits: Limits) -> pb.CoverResponse:
    """The covers of the texts of a request."""
    made = _model(model, request.reading, request.texts, limits)
    most = request.most if request.HasField("most") else _MOST
    found = []
    for each, context in zip(request.texts, _contexts(model, request.texts), strict=True):
        elements = made.cover(each.text, context_ids=context)
        log_mass = _log_sum([log_p for _, log_p in elements])
        shown = [pb.CoverElement(token_ids=ids, log_p=p) for ids, p in elements[:most]]
        target = _TARGETS[made.target]
        found.append(
            pb.ByteCover(elements=shown, count=len(elements), log_mass=log_mass, target=target)
        )
    return pb.CoverResponse(covers=found)


def heals(
    model: ServedModel, request: pb.HealRequest, limits: Limits, metrics: Metrics
) -> pb.HealResponse:
    """The prompts of a request with their ends drawn again."""
    _check_count("prompts", len(request.prompts), limits)
    target = _target(request.target, "target")
    law = _law(request.law, limits)
    prompts = [_prompt(model, each, i, limits) for i, each in enumerate(request.prompts)]
    matchers = [_matcher(model, each, i, limits) for i, each in enumerate(request.prompts)]
    sequences = [
        sequence_of(ids, each.occurrence)
        for ids, each in zip(prompts, request.prompts, strict=True)
    ]
    found = model.bytes.healer(target, law).heal(
        prompts,
        seed=request.seed,
        sequences=sequences,
        matchers=matchers,
        heal=[not each.off for each in request.prompts],
    )
    for healed in found:
        metrics.draw(METRICS, healed.status, 0)
    return pb.HealResponse(prompts=[_healed(each) for each in found])


def _healed(healed: Healed) -> pb.HealedPrompt:
    return pb.HealedPrompt(
        token_ids=healed.token_ids,
        overshoot=healed.overshoot,
        kept=healed.kept,
        log_cover=healed.log_cover,
        log_weight=healed.log_weight,
        log_p=healed.log_p,
        log_pruned=healed.log_pruned,
        method=healed.method,
        target=_TARGETS[healed.target],
        status=STATUSES[healed.status],
        reason=healed.reason,
    )


def _score(made: ByteModel, text: bytes, context: list[int] | None) -> pb.ByteScore:
    report = made.report(text, context_ids=context)
    dead = report.log_p == -math.inf
    return pb.ByteScore(
        log_p=report.log_p,
        bits_per_byte=report.bits_per_byte,
        bits_per_byte_prefix=report.bits_per_byte_prefix,
        bits_per_byte_tokens=report.bits_per_byte_tokens,
        log_p_bytes=report.log_p_bytes.tolist(),
        log_pruned=report.log_pruned,
        target=_TARGETS[report.target],
        status=STATUSES["dead" if dead else "running"],
    )


def _model(
    model: ServedModel,
    reading: pb.ByteReading,
    texts: Sequence[pb.ByteText],
    limits: Limits,
    *,
    byte: float = 1.0,
) -> ByteModel:
    """The byte model that a request asks for, whose texts it can read."""
    target = _target(reading.target, "reading.target")
    width = reading.beam_width if reading.HasField("beam_width") else 8
    if not 1 <= width <= limits.beam_width:
        raise refused("reading.beam_width", str(width), f"from 1 to {limits.beam_width}")
    temperature = reading.token_temperature if reading.HasField("token_temperature") else 1.0
    _check_count("texts", len(texts), limits)
    try:
        made = model.bytes.model(target, width=width, token_temperature=temperature, byte=byte)
    except InputError as error:
        raise invalid(error, "" if error.argument == "byte_temperature" else "reading") from None
    for i, each in enumerate(texts):
        _check_text(model, each, i, made.target, limits)
    return made


def _check_text(
    model: ServedModel, each: pb.ByteText, i: int, target: Target, limits: Limits
) -> None:
    most = limits.beam_bytes if target == "all" else limits.byte_text_bytes
    if len(each.text) > most:
        accepted = f"at most {most} bytes, for the target {target}"
        raise refused(f"texts.{i}.text", f"{len(each.text)} bytes", accepted)
    tokens = model.bytes.tokens(each.text) + len(each.context.ids)
    if tokens > model.max_tokens:
        accepted = f"fewer than {model.max_tokens}, all that the model takes"
        raise refused(f"texts.{i}", f"{tokens} tokens", accepted)


def _contexts(model: ServedModel, texts: Sequence[pb.ByteText]) -> list[list[int] | None]:
    found: list[list[int] | None] = []
    for i, each in enumerate(texts):
        ids = list(each.context.ids) if each.HasField("context") else None
        if ids is not None:
            _check_ids(model, ids, f"texts.{i}.context.ids")
        found.append(ids)
    return found


def _prompt(model: ServedModel, each: pb.HealPrompt, i: int, limits: Limits) -> list[int]:
    kind = each.WhichOneof("prompt")
    if kind == "text":
        size = len(each.text.encode())
        if size > limits.byte_text_bytes:
            accepted = f"at most {limits.byte_text_bytes} bytes"
            raise refused(f"prompts.{i}.text", f"{size} bytes", accepted)
        ids = model.encode(each.text)
    else:
        ids = list(each.token_ids.ids)
    _check_ids(model, ids, f"prompts.{i}.{kind or 'prompt'}")
    if len(ids) >= model.max_tokens:
        accepted = f"fewer than {model.max_tokens}, all that the model takes"
        raise refused(f"prompts.{i}", f"{len(ids)} tokens", accepted)
    return ids


def _check_ids(model: ServedModel, ids: Sequence[int], field: str) -> None:
    if not ids:
        raise refused(field, "no token", "at least one token")
    most = len(model.vocabulary) - 1
    if max(ids) > most:
        raise refused(field, str(max(ids)), f"ids from 0 to {most}")


def _matcher(model: ServedModel, each: pb.HealPrompt, i: int, limits: Limits) -> Matcher:
    """Of the bytes behind a prompt; one that allows all without a constraint."""
    if not each.HasField("constraint"):
        return AnyIds(model.vocabulary)
    strategy = admitted(strategy_pb.Strategy(constraint=each.constraint), limits)
    return prepared(strategy, model.vocabulary, limits).matcher


def _law(message: strategy_pb.Law, limits: Limits) -> Law:
    return admitted(strategy_pb.Strategy(law=message), limits, "sidecar_process").build_law()


def _target(value: Any, field: str) -> Target:
    if value in (pb.BYTE_TARGET_UNSPECIFIED, pb.BYTE_TARGET_CANONICAL):
        return "canonical"
    if value == pb.BYTE_TARGET_ALL:
        return "all"
    raise refused(field, str(value), "BYTE_TARGET_CANONICAL or BYTE_TARGET_ALL")


def _check_count(field: str, count: int, limits: Limits) -> None:
    if not 1 <= count <= limits.byte_texts:
        raise refused(field, str(count), f"from 1 to {limits.byte_texts}")


def _log_sum(values: Sequence[float]) -> float:
    top = max(values, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in values))
