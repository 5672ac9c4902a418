# mypy: ignore-errors
from midstream.proto.v1 import status_pb2 as _status_pb2
from midstream.proto.v1 import strategy_pb2 as _strategy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_TOKENS: _ClassVar[EventKind]
    EVENT_KIND_RESAMPLINGS: _ClassVar[EventKind]
    EVENT_KIND_NONE: _ClassVar[EventKind]
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_TOKENS: EventKind
EVENT_KIND_RESAMPLINGS: EventKind
EVENT_KIND_NONE: EventKind

class GenerateRequest(_message.Message):
    __slots__ = ("model", "text", "token_ids", "strategy", "events", "occurrence")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    OCCURRENCE_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    token_ids: TokenIds
    strategy: _strategy_pb2.Strategy
    events: _containers.RepeatedScalarFieldContainer[EventKind]
    occurrence: int
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., strategy: _Optional[_Union[_strategy_pb2.Strategy, _Mapping]] = ..., events: _Optional[_Iterable[_Union[EventKind, str]]] = ..., occurrence: _Optional[int] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("started", "tokens", "resampling", "summary")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESAMPLING_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    started: Started
    tokens: Tokens
    resampling: _status_pb2.Resampling
    summary: _status_pb2.Summary
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., resampling: _Optional[_Union[_status_pb2.Resampling, _Mapping]] = ..., summary: _Optional[_Union[_status_pb2.Summary, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("model", "prompt_token_ids", "vocabulary_fingerprint", "overshoot", "log_cover")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    OVERSHOOT_FIELD_NUMBER: _ClassVar[int]
    LOG_COVER_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    vocabulary_fingerprint: str
    overshoot: bytes
    log_cover: float
    def __init__(self, model: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., vocabulary_fingerprint: _Optional[str] = ..., overshoot: _Optional[bytes] = ..., log_cover: _Optional[float] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("position", "tokens")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    position: int
    tokens: _containers.RepeatedCompositeFieldContainer[ParticleToken]
    def __init__(self, position: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[ParticleToken, _Mapping]]] = ...) -> None: ...

class ParticleToken(_message.Message):
    __slots__ = ("particle", "token", "text", "log_weight", "status")
    PARTICLE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOG_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    particle: int
    token: int
    text: bytes
    log_weight: float
    status: _status_pb2.SequenceStatus
    def __init__(self, particle: _Optional[int] = ..., token: _Optional[int] = ..., text: _Optional[bytes] = ..., log_weight: _Optional[float] = ..., status: _Optional[_Union[_status_pb2.SequenceStatus, str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("summary", "prompt_token_ids")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    summary: _status_pb2.Summary
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, summary: _Optional[_Union[_status_pb2.Summary, _Mapping]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...
