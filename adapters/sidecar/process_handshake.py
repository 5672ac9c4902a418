"""The handshake of a Process stream: read, checked, and compiled into what answers the steps."""

from __future__ import annotations

from dataclasses import dataclass

from midstream.adapters.sidecar.admission import Prepared, admitted, prepared
from midstream.adapters.sidecar.groups import SequenceGroup
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.particle_group import ParticleGroup
from midstream.adapters.sidecar.protocol import ANSWERS, LOGITS_TYPES, VERSION, Answer
from midstream.adapters.sidecar.step_rows import padded_size
from midstream.adapters.sidecar.vocabularies import Vocabularies
from midstream.adapters.sidecar.wire.errors import invalid, not_found
from midstream.logits_processors.fit import SPARE_IDS, SPARE_SHARE
from midstream.middleware.budget import Finishing
from midstream.middleware.errors import InputError, StrategyError, VocabularyError
from midstream.middleware.smc import SMC
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import logits_processing_pb2 as pb

HOST = "sidecar_process"
MOST_EOS_IDS = 256

_OPTIONS = {
    "particles": "smc.particles",
    "ess_threshold": "smc.ess_threshold",
    "max_new_tokens": "limits.max_new_tokens",
    "temperature": "law.temperature",
    "truncation": "law.truncation",
}
"""Where the options of a run stand in a strategy."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a handshake came to.

    is_automaton: whether masks are drawn from, each of which is cheap whatever the state.
    """

    vocabulary: Vocabulary
    prepared: Prepared
    group: SequenceGroup | ParticleGroup
    row_size: int
    dtype: int
    is_automaton: bool

    @property
    def ready(self) -> pb.ProcessResponse:
        """The answer to the handshake."""
        return pb.ProcessResponse(
            ready=pb.Ready(
                protocol_version=VERSION,
                vocabulary_fingerprint=self.vocabulary.fingerprint,
                vocabulary_size=len(self.vocabulary),
                sampler=self.prepared.name,
                sampler_reason=self.prepared.reason,
            )
        )


def opened(handshake: pb.Handshake, vocabularies: Vocabularies, limits: Limits) -> Opened:
    """Carry out a handshake. Takes as long as vocabularies and constraints are allowed to.

    Raises Refusal that names the field.
    """
    strategy = admitted(handshake.strategy, limits, HOST)
    try:
        answer = _checked(handshake, strategy)
        vocabulary = _vocabulary(handshake, vocabularies)
        row_size = _row_size(handshake.row_size, vocabulary)
    except InputError as error:
        raise invalid(error, "handshake") from None
    ready = prepared(strategy, vocabulary, limits)
    try:
        group = _group(handshake, strategy, ready, answer, row_size, limits)
    except InputError as error:
        if error.argument in _OPTIONS:
            error = type(error)(_OPTIONS[error.argument], error.got, error.accepted)
            raise invalid(error, "strategy") from None
        raise invalid(error, "" if error.argument.startswith("strategy") else "handshake") from None
    automaton = ready.name == "mask" and isinstance(ready.matcher, Finishing)
    return Opened(vocabulary, ready, group, row_size, handshake.dtype, automaton)


def _checked(handshake: pb.Handshake, strategy: Strategy) -> Answer:
    """What needs no vocabulary."""
    version = handshake.protocol_version
    if version != VERSION:
        raise InputError("protocol_version", version, str(VERSION))
    if handshake.dtype not in LOGITS_TYPES:
        accepted = "DTYPE_FLOAT32, DTYPE_FLOAT64, DTYPE_FLOAT16 or DTYPE_BFLOAT16"
        raise InputError("dtype", handshake.dtype, accepted)
    answer = ANSWERS.get(handshake.answer)
    if answer is None:
        accepted = "ANSWER_TOKEN, ANSWER_MASK or ANSWER_LOGITS"
        raise InputError("answer", handshake.answer, accepted)
    if answer != "token" and strategy.smc.particles > 1:
        accepted = "ANSWER_TOKEN, since particles are drawn where they are resampled"
        raise StrategyError("answer", f"ANSWER_{answer.upper()} for several particles", accepted)
    return answer


def _vocabulary(handshake: pb.Handshake, vocabularies: Vocabularies) -> Vocabulary:
    kind, eos_ids = handshake.WhichOneof("vocabulary"), tuple(handshake.eos_ids)
    if len(eos_ids) > MOST_EOS_IDS:
        raise VocabularyError("eos_ids", f"{len(eos_ids)} ids", f"at most {MOST_EOS_IDS}")
    if kind == "tokenizer_json":
        return vocabularies.read_json(handshake.tokenizer_json, eos_ids)
    if kind == "tokens":
        return vocabularies.read_table(handshake.tokens.tokens, eos_ids)
    if kind is None:
        accepted = "tokenizer_json, vocabulary_fingerprint or tokens"
        raise VocabularyError("vocabulary", "none", accepted)
    fingerprint = handshake.vocabulary_fingerprint
    vocabulary = vocabularies.find(fingerprint, eos_ids)
    if vocabulary is None:
        accepted = "the fingerprint of one of the models, or of a Ready not long ago; else send "
        raise not_found("vocabulary", fingerprint, accepted + "tokenizer_json")
    return vocabulary


def _row_size(size: int, vocabulary: Vocabulary) -> int:
    """VocabularyError for a row that no model with this vocabulary has."""
    least = len(vocabulary)
    most = max(least + SPARE_IDS, int(least / (1 - SPARE_SHARE)))
    if not least <= size <= most:
        accepted = f"from {least}, the tokens of the vocabulary, to {most}, with padding"
        raise VocabularyError("row_size", size, accepted)
    return size


def _group(
    handshake: pb.Handshake,
    strategy: Strategy,
    ready: Prepared,
    answer: Answer,
    row_size: int,
    limits: Limits,
) -> SequenceGroup | ParticleGroup:
    if answer == "token" and handshake.strategy.HasField("smc"):
        options = strategy.run_options()
        options["sampler"] = ready.sampler
        smc = SMC(ready.matcher, sequence=handshake.sequence, **options)
        return ParticleGroup(smc, padded_size(row_size))
    return SequenceGroup(
        ready.matcher,
        answer=answer,
        sampler=ready.sampler,
        law=strategy.build_law(),
        seed=strategy.seed,
        max_new_tokens=strategy.limits.max_new_tokens,
        row_size=padded_size(row_size) if answer == "token" else row_size,
        most=limits.sequences,
    )
