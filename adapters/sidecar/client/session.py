"""A Process stream from the engine's side, apart from how messages travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.adapters.sidecar.client.region import Region
from midstream.adapters.sidecar.protocol import (
    ANSWERS,
    LOGITS_TYPES,
    VERSION,
    Answer,
    LogitsType,
)
from midstream.adapters.sidecar.wire.results import (
    Outcome,
    ResamplingEvent,
    outcome,
    resampling_event,
    status_name,
)
from midstream.adapters.sidecar.wire.strategy import strategy_message
from midstream.adapters.sidecar.wire.tensors import DTYPES, array_from, tensor_of
from midstream.kernels.bitmask import mask_words
from midstream.middleware.draw import Status
from midstream.middleware.errors import InputError
from midstream.middleware.host import logits_on_host
from midstream.middleware.smc import Growth
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import logits_processing_pb2 as pb
from midstream.proto.v1 import tensor_pb2

KnownVocabulary: TypeAlias = Vocabulary | bytes | str
"""A Vocabulary, the text of a tokenizer.json, or the fingerprint of one that the server knows."""

_TYPES = {name: value for value, name in LOGITS_TYPES.items()}
_ANSWERS = {name: value for value, name in ANSWERS.items()}
_REGION = "logits"


@dataclass(frozen=True, slots=True)
class ReadyInfo:
    """What the server made of a handshake. sampler: "mask" or "awrs", and why that one."""

    vocabulary_fingerprint: str
    vocabulary_size: int
    sampler: str
    sampler_reason: str


@dataclass(frozen=True, slots=True)
class RowOfStep:
    """Whose row of logits it is: see SequenceRow in proto/midstream/v1/logits_processing.proto.

    token: what the engine drew from the last mask or logits, None where it drew nothing. sequence:
    of a new id, its number for the random numbers.
    """

    id: int
    token: int | None = None
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """What a step came to for one sequence.

    token: -1 where none was drawn. log_weight: of this step, nats, NaN where it is not known.
    total_log_weight: of all steps.
    """

    id: int
    token: int
    log_weight: float
    total_log_weight: float
    status: Status
    reason: str
    checks: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """The answer to a step, row by row.

    masks: uint32 [R, W], for answer="mask". logits: [R, row_size], float32 or float64, for
    answer="logits".
    """

    rows: tuple[SequenceStep, ...]
    masks: npt.NDArray[np.uint32] | None = None
    logits: npt.NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """What a handshake says.

    row_size: the length of a row of logits. dtype: as they are sent. shared_rows: how many rows a
    region of shared memory holds; 0: they travel inside the messages. eos_ids: in the place of the
    vocabulary's own. sequence: of a run of particles, see the proto.
    """

    vocabulary: KnownVocabulary
    row_size: int
    strategy: Strategy
    answer: Answer = "token"
    dtype: LogitsType = "float32"
    eos_ids: tuple[int, ...] = ()
    sequence: int = 0
    shared_rows: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in _TYPES:
            raise InputError("dtype", self.dtype, "one of " + ", ".join(_TYPES))
        if self.answer not in _ANSWERS:
            raise InputError("answer", self.answer, "one of " + ", ".join(_ANSWERS))
        if self.row_size < 1 or self.shared_rows < 0:
            raise InputError("row_size", self.row_size, "an integer, at least 1")


class Session:
    """Makes the requests of one stream, and reads its responses. Holds the region, if any."""

    def __init__(self, options: ProcessOptions) -> None:
        self.options = options
        self.region: Region | None = None
        self._number = 0
        self._rows = 0

    def handshake(self, *, upload: bool) -> pb.ProcessRequest:
        """The first message. upload: send a Vocabulary's tokens, not its fingerprint alone."""
        options = self.options
        message = pb.Handshake(
            protocol_version=VERSION,
            eos_ids=options.eos_ids,
            row_size=options.row_size,
            dtype=_TYPES[options.dtype],
            strategy=strategy_message(options.strategy),
            answer=_ANSWERS[options.answer],
            sequence=options.sequence,
        )
        vocabulary = options.vocabulary
        if isinstance(vocabulary, bytes):
            message.tokenizer_json = vocabulary
        elif isinstance(vocabulary, str):
            message.vocabulary_fingerprint = vocabulary
        elif upload:
            message.tokens.tokens.extend(vocabulary.token_bytes)
            if not options.eos_ids:
                message.eos_ids.extend(vocabulary.eos_ids)
        else:
            message.vocabulary_fingerprint = vocabulary.fingerprint
        if options.shared_rows and self.region is None:
            stored = DTYPES[_TYPES[options.dtype]]
            self.region = Region(options.shared_rows, options.row_size, stored)
        if self.region is not None:
            size = self.region.size_bytes
            message.regions.add(name=_REGION, key=self.region.key, size_bytes=size)
        return pb.ProcessRequest(handshake=message)

    def ready(self, response: pb.ProcessResponse) -> ReadyInfo:
        """The answer to the handshake, after which nobody opens the region any more."""
        if self.region is not None:
            self.region.unlink()
        told = response.ready
        return ReadyInfo(
            told.vocabulary_fingerprint,
            told.vocabulary_size,
            told.sampler,
            told.sampler_reason,
        )

    def step(self, logits: Any | None, rows: Sequence[RowOfStep]) -> pb.ProcessRequest:
        """A step. logits: [R, row_size], numpy or torch; None where masks need none."""
        message = pb.Step(number=self._number)
        self._number += 1
        self._rows = len(rows)
        for row in rows:
            message.rows.add(id=row.id, token=row.token, sequence=row.sequence)
        if logits is not None:
            self._fill(message.logits, logits)
        return pb.ProcessRequest(step=message)

    def result(self, response: pb.ProcessResponse) -> StepResult:
        """The answer to a step of sequences."""
        told = response.result
        rows = tuple(
            SequenceStep(
                each.id,
                each.token,
                each.log_weight,
                each.total_log_weight,
                status_name(each.status),
                each.reason,
                each.checks,
            )
            for each in told.rows
        )
        if self.options.answer == "token":
            return StepResult(rows)
        size, dtype = self.options.row_size, _TYPES[self.options.dtype]
        if self.options.answer == "mask":
            size, dtype = mask_words(size), tensor_pb2.DTYPE_UINT32
        shape = (self._rows, size)
        offered = array_from(told.tensor, None, name="result.tensor", dtype=dtype, shape=shape)
        if self.options.answer == "mask":
            return StepResult(rows, masks=offered)
        return StepResult(rows, logits=offered)

    def growth(self, response: pb.ProcessResponse) -> tuple[Growth | None, ResamplingEvent | None]:
        """The answer to a step of particles: None where the run is over."""
        told = response.result
        event = resampling_event(told.resampling) if told.HasField("resampling") else None
        growth = Growth(tuple(told.parents), tuple(told.tokens)) if told.parents else None
        return growth, event

    def outcome(self, response: pb.ProcessResponse) -> Outcome:
        """What a run of particles came to."""
        return outcome(response.summary)

    def close(self) -> None:
        """Give the region up."""
        if self.region is not None:
            self.region.close()

    def _fill(self, tensor: tensor_pb2.Tensor, logits: Any) -> None:
        options, region = self.options, self.region
        array = _stored(logits, _TYPES[options.dtype])
        if array.ndim != 2 or array.shape[1] != options.row_size:
            accepted = f"(rows, {options.row_size})"
            raise InputError("logits", f"shape {array.shape}", accepted)
        tensor.dtype = _TYPES[options.dtype]
        tensor.shape.extend(array.shape)
        if region is None:
            tensor.inline = array.tobytes()
            return
        if len(array) > options.shared_rows:
            accepted = f"at most {options.shared_rows}, the shared_rows of the stream"
            raise InputError("logits", f"{len(array)} rows", accepted)
        tensor.shared_memory.region = _REGION
        tensor.shared_memory.offset = region.place(array)


def fork(parent: int, to: int, sequence: int) -> pb.ProcessRequest:
    """A second sequence that stands where the first one does."""
    return pb.ProcessRequest(fork=pb.Fork(parent=parent, to=to, sequence=sequence))


def close(id: int) -> pb.ProcessRequest:
    """A sequence that is not needed any more."""
    return pb.ProcessRequest(close=pb.Close(id=id))


def _stored(logits: Any, dtype: int) -> npt.NDArray[Any]:
    """Logits as their bytes lie in memory; themselves where they are of that type already."""
    stored = DTYPES[dtype]
    if isinstance(logits, np.ndarray) and logits.dtype == stored:
        return logits
    array = logits_on_host(logits)
    return np.frombuffer(tensor_of(array, dtype).inline, stored).reshape(array.shape)
