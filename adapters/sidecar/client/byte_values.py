"""Requests of the service Bytes from Python's values, and values from what it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.adapters.sidecar.client.requests import Prompt, constraint_data
from midstream.adapters.sidecar.wire.results import status_name
from midstream.adapters.sidecar.wire.strategy import strategy_message
from midstream.middleware.draw import Status
from midstream.middleware.errors import InputError
from midstream.middleware.strategy import Strategy
from midstream.proto.v1 import bytes_pb2 as pb

ByteTarget: TypeAlias = Literal["canonical", "all"]
Text: TypeAlias = str | bytes

_TARGETS = {"canonical": pb.BYTE_TARGET_CANONICAL, "all": pb.BYTE_TARGET_ALL}
_NAMES: Mapping[int, ByteTarget] = {
    pb.BYTE_TARGET_CANONICAL: "canonical",
    pb.BYTE_TARGET_ALL: "all",
}


@dataclass(frozen=True, slots=True)
class NextByteLaw:
    """What follows a text; see ByteLaw in proto/midstream/v1/bytes.proto. p: float64 [257]."""

    p: npt.NDArray[np.float64]
    log_mass: float
    log_pruned: float
    target: ByteTarget
    status: Status
    undecided: str


@dataclass(frozen=True, slots=True)
class TextScore:
    """The probability of a text; see ByteScore. log_p_bytes: float64 [n], nats."""

    log_p: float
    bits_per_byte: float
    bits_per_byte_prefix: float
    bits_per_byte_tokens: float | None
    log_p_bytes: npt.NDArray[np.float64]
    log_pruned: float
    target: ByteTarget
    status: Status


@dataclass(frozen=True, slots=True)
class TextCover:
    """The most probable token strings of a text with log P, how many there are, log of them all."""

    elements: tuple[tuple[tuple[int, ...], float], ...]
    count: int
    log_mass: float
    target: ByteTarget


@dataclass(frozen=True, slots=True)
class HealedText:
    """A healed prompt; see HealedPrompt."""

    token_ids: tuple[int, ...]
    overshoot: bytes
    kept: int
    log_cover: float
    log_weight: float
    log_p: float
    log_pruned: float
    method: str
    target: ByteTarget
    status: Status
    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts are read. model: an alias, empty for the default. beam_width: of target "all"."""

    model: str = ""
    target: ByteTarget = "canonical"
    beam_width: int | None = None
    token_temperature: float | None = None

    def message(self) -> pb.ByteReading:
        """On the wire."""
        return pb.ByteReading(
            model=self.model,
            target=_target(self.target),
            beam_width=self.beam_width,
            token_temperature=self.token_temperature,
        )


PLAIN = Reading()
"""By the default model, as the server reads unless it is told else."""


def next_byte_request(
    texts: Sequence[Text],
    reading: Reading,
    byte_temperature: float | None,
    context_ids: Sequence[int] | None,
) -> pb.NextByteRequest:
    """The request."""
    return pb.NextByteRequest(
        reading=reading.message(),
        texts=text_messages(texts, context_ids),
        byte_temperature=byte_temperature,
    )


def heal_request(
    prompts: Sequence[Prompt],
    model: str,
    target: ByteTarget,
    constraint: Any,
    law: Mapping[str, Any] | None,
    seed: int,
    heal: bool | Sequence[bool],
) -> pb.HealRequest:
    """The request. InputError for what is no prompt, no constraint and no law."""
    wanted = [heal] * len(prompts) if isinstance(heal, bool) else list(heal)
    if len(wanted) != len(prompts):
        raise InputError("heal", heal, f"True, False, or one of them for each of {len(prompts)}")
    fields: dict[str, Any] = {} if law is None else {"law": dict(law)}
    if constraint is not None:
        given = isinstance(constraint, Mapping)
        fields["constraint"] = dict(constraint) if given else constraint_data(constraint)
    message = strategy_message(Strategy(**fields, seed=seed))
    request = pb.HealRequest(model=model, target=_target(target), seed=seed)
    if law is not None:
        request.law.CopyFrom(message.law)
    seen: dict[Any, int] = {}
    for prompt, on in zip(prompts, wanted, strict=True):
        each = request.prompts.add(off=not on)
        if isinstance(prompt, str):
            each.text = prompt
            key: Any = prompt
        else:
            key = tuple(prompt)
            each.token_ids.ids.extend(key)
            each.token_ids.SetInParent()
        each.occurrence = seen.get(key, 0)
        seen[key] = each.occurrence + 1
        if constraint is not None:
            each.constraint.CopyFrom(message.constraint)
    return request


def read_laws(response: pb.NextByteResponse) -> list[NextByteLaw]:
    """The values of a response."""
    return [
        NextByteLaw(
            np.array(each.p, np.float64),
            each.log_mass,
            each.log_pruned,
            _NAMES[each.target],
            status_name(each.status),
            each.undecided,
        )
        for each in response.laws
    ]


def read_scores(response: pb.ScoreResponse) -> list[TextScore]:
    """The values of a response."""
    return [
        TextScore(
            each.log_p,
            each.bits_per_byte,
            each.bits_per_byte_prefix,
            each.bits_per_byte_tokens if each.HasField("bits_per_byte_tokens") else None,
            np.array(each.log_p_bytes, np.float64),
            each.log_pruned,
            _NAMES[each.target],
            status_name(each.status),
        )
        for each in response.scores
    ]


def read_covers(response: pb.CoverResponse) -> list[TextCover]:
    """The values of a response."""
    return [
        TextCover(
            tuple((tuple(one.token_ids), one.log_p) for one in each.elements),
            each.count,
            each.log_mass,
            _NAMES[each.target],
        )
        for each in response.covers
    ]


def read_healed(response: pb.HealResponse) -> list[HealedText]:
    """The values of a response."""
    return [
        HealedText(
            tuple(each.token_ids),
            each.overshoot,
            each.kept,
            each.log_cover,
            each.log_weight,
            each.log_p,
            each.log_pruned,
            each.method,
            _NAMES[each.target],
            status_name(each.status),
            each.reason,
        )
        for each in response.prompts
    ]


def text_messages(texts: Sequence[Text], context_ids: Sequence[int] | None) -> list[pb.ByteText]:
    """Texts as they go over the wire: what was no UTF-8 when it was read is its bytes again."""
    messages = []
    for text in texts:
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        message = pb.ByteText(text=data)
        if context_ids is not None:
            message.context.ids.extend(context_ids)
            message.context.SetInParent()
        messages.append(message)
    return messages


def _target(target: str) -> pb.ByteTarget:
    if target not in _TARGETS:
        raise InputError("target", target, '"canonical" or "all"')
    return _TARGETS[target]
