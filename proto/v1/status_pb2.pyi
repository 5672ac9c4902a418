# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SequenceStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEQUENCE_STATUS_UNSPECIFIED: _ClassVar[SequenceStatus]
    SEQUENCE_STATUS_RUNNING: _ClassVar[SequenceStatus]
    SEQUENCE_STATUS_FINISHED: _ClassVar[SequenceStatus]
    SEQUENCE_STATUS_LENGTH: _ClassVar[SequenceStatus]
    SEQUENCE_STATUS_DEAD: _ClassVar[SequenceStatus]
    SEQUENCE_STATUS_EXHAUSTED: _ClassVar[SequenceStatus]
    SEQUENCE_STATUS_CANCELLED: _ClassVar[SequenceStatus]
SEQUENCE_STATUS_UNSPECIFIED: SequenceStatus
SEQUENCE_STATUS_RUNNING: SequenceStatus
SEQUENCE_STATUS_FINISHED: SequenceStatus
SEQUENCE_STATUS_LENGTH: SequenceStatus
SEQUENCE_STATUS_DEAD: SequenceStatus
SEQUENCE_STATUS_EXHAUSTED: SequenceStatus
SEQUENCE_STATUS_CANCELLED: SequenceStatus

class Particle(_message.Message):
    __slots__ = ("token_ids", "text", "log_weight", "status", "reason", "checks")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: bytes
    log_weight: float
    status: SequenceStatus
    reason: str
    checks: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[bytes] = ..., log_weight: _Optional[float] = ..., status: _Optional[_Union[SequenceStatus, str]] = ..., reason: _Optional[str] = ..., checks: _Optional[int] = ...) -> None: ...

class Resampling(_message.Message):
    __slots__ = ("position", "ancestors", "ess")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ANCESTORS_FIELD_NUMBER: _ClassVar[int]
    ESS_FIELD_NUMBER: _ClassVar[int]
    position: int
    ancestors: _containers.RepeatedScalarFieldContainer[int]
    ess: float
    def __init__(self, position: _Optional[int] = ..., ancestors: _Optional[_Iterable[int]] = ..., ess: _Optional[float] = ...) -> None: ...

class Summary(_message.Message):
    __slots__ = ("particles", "log_evidence", "ancestry", "ess", "proper", "sampler", "sampler_reason", "seed", "status")
    PARTICLES_FIELD_NUMBER: _ClassVar[int]
    LOG_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    ANCESTRY_FIELD_NUMBER: _ClassVar[int]
    ESS_FIELD_NUMBER: _ClassVar[int]
    PROPER_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_REASON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    particles: _containers.RepeatedCompositeFieldContainer[Particle]
    log_evidence: float
    ancestry: _containers.RepeatedCompositeFieldContainer[Ancestors]
    ess: _containers.RepeatedScalarFieldContainer[float]
    proper: bool
    sampler: str
    sampler_reason: str
    seed: int
    status: SequenceStatus
    def __init__(self, particles: _Optional[_Iterable[_Union[Particle, _Mapping]]] = ..., log_evidence: _Optional[float] = ..., ancestry: _Optional[_Iterable[_Union[Ancestors, _Mapping]]] = ..., ess: _Optional[_Iterable[float]] = ..., proper: bool = ..., sampler: _Optional[str] = ..., sampler_reason: _Optional[str] = ..., seed: _Optional[int] = ..., status: _Optional[_Union[SequenceStatus, str]] = ...) -> None: ...

class Ancestors(_message.Message):
    __slots__ = ("ancestors",)
    ANCESTORS_FIELD_NUMBER: _ClassVar[int]
    ancestors: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ancestors: _Optional[_Iterable[int]] = ...) -> None: ...
