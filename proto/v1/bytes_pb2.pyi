# mypy: ignore-errors
from midstream.proto.v1 import decoding_pb2 as _decoding_pb2
from midstream.proto.v1 import status_pb2 as _status_pb2
from midstream.proto.v1 import strategy_pb2 as _strategy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ByteTarget(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BYTE_TARGET_UNSPECIFIED: _ClassVar[ByteTarget]
    BYTE_TARGET_CANONICAL: _ClassVar[ByteTarget]
    BYTE_TARGET_ALL: _ClassVar[ByteTarget]
BYTE_TARGET_UNSPECIFIED: ByteTarget
BYTE_TARGET_CANONICAL: ByteTarget
BYTE_TARGET_ALL: ByteTarget

class ByteReading(_message.Message):
    __slots__ = ("model", "target", "beam_width", "token_temperature")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BEAM_WIDTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    model: str
    target: ByteTarget
    beam_width: int
    token_temperature: float
    def __init__(self, model: _Optional[str] = ..., target: _Optional[_Union[ByteTarget, str]] = ..., beam_width: _Optional[int] = ..., token_temperature: _Optional[float] = ...) -> None: ...

class ByteText(_message.Message):
    __slots__ = ("text", "context")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    text: bytes
    context: _decoding_pb2.TokenIds
    def __init__(self, text: _Optional[bytes] = ..., context: _Optional[_Union[_decoding_pb2.TokenIds, _Mapping]] = ...) -> None: ...

class NextByteRequest(_message.Message):
    __slots__ = ("reading", "texts", "byte_temperature")
    READING_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    BYTE_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    reading: ByteReading
    texts: _containers.RepeatedCompositeFieldContainer[ByteText]
    byte_temperature: float
    def __init__(self, reading: _Optional[_Union[ByteReading, _Mapping]] = ..., texts: _Optional[_Iterable[_Union[ByteText, _Mapping]]] = ..., byte_temperature: _Optional[float] = ...) -> None: ...

class NextByteResponse(_message.Message):
    __slots__ = ("laws",)
    LAWS_FIELD_NUMBER: _ClassVar[int]
    laws: _containers.RepeatedCompositeFieldContainer[ByteLaw]
    def __init__(self, laws: _Optional[_Iterable[_Union[ByteLaw, _Mapping]]] = ...) -> None: ...

class ByteLaw(_message.Message):
    __slots__ = ("p", "log_mass", "log_pruned", "target", "status", "undecided")
    P_FIELD_NUMBER: _ClassVar[int]
    LOG_MASS_FIELD_NUMBER: _ClassVar[int]
    LOG_PRUNED_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    UNDECIDED_FIELD_NUMBER: _ClassVar[int]
    p: _containers.RepeatedScalarFieldContainer[float]
    log_mass: float
    log_pruned: float
    target: ByteTarget
    status: _status_pb2.SequenceStatus
    undecided: str
    def __init__(self, p: _Optional[_Iterable[float]] = ..., log_mass: _Optional[float] = ..., log_pruned: _Optional[float] = ..., target: _Optional[_Union[ByteTarget, str]] = ..., status: _Optional[_Union[_status_pb2.SequenceStatus, str]] = ..., undecided: _Optional[str] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("reading", "texts")
    READING_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    reading: ByteReading
    texts: _containers.RepeatedCompositeFieldContainer[ByteText]
    def __init__(self, reading: _Optional[_Union[ByteReading, _Mapping]] = ..., texts: _Optional[_Iterable[_Union[ByteText, _Mapping]]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores",)
    SCORES_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[ByteScore]
    def __init__(self, scores: _Optional[_Iterable[_Union[ByteScore, _Mapping]]] = ...) -> None: ...

class ByteScore(_message.Message):
    __slots__ = ("log_p", "bits_per_byte", "bits_per_byte_prefix", "bits_per_byte_tokens", "log_p_bytes", "log_pruned", "target", "status")
    LOG_P_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_BYTE_PREFIX_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_BYTE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOG_P_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_PRUNED_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    log_p: float
    bits_per_byte: float
    bits_per_byte_prefix: float
    bits_per_byte_tokens: float
    log_p_bytes: _containers.RepeatedScalarFieldContainer[float]
    log_pruned: float
    target: ByteTarget
    status: _status_pb2.SequenceStatus
    def __init__(self, log_p: _Optional[float] = ..., bits_per_byte: _Optional[float] = ..., bits_per_byte_prefix: _Optional[float] = ..., bits_per_byte_tokens: _Optional[float] = ..., log_p_bytes: _Optional[_Iterable[float]] = ..., log_pruned: _Optional[float] = ..., target: _Optional[_Union[ByteTarget, str]] = ..., status: _Optional[_Union[_status_pb2.SequenceStatus, str]] = ...) -> None: ...

class CoverRequest(_message.Message):
    __slots__ = ("reading", "texts", "most")
    READING_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    reading: ByteReading
    texts: _containers.RepeatedCompositeFieldContainer[ByteText]
    most: int
    def __init__(self, reading: _Optional[_Union[ByteReading, _Mapping]] = ..., texts: _Optional[_Iterable[_Union[ByteText, _Mapping]]] = ..., most: _Optional[int] = ...) -> None: ...

class CoverResponse(_message.Message):
    __slots__ = ("covers",)
    COVERS_FIELD_NUMBER: _ClassVar[int]
    covers: _containers.RepeatedCompositeFieldContainer[ByteCover]
    def __init__(self, covers: _Optional[_Iterable[_Union[ByteCover, _Mapping]]] = ...) -> None: ...

class ByteCover(_message.Message):
    __slots__ = ("elements", "count", "log_mass", "target")
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    LOG_MASS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    elements: _containers.RepeatedCompositeFieldContainer[CoverElement]
    count: int
    log_mass: float
    target: ByteTarget
    def __init__(self, elements: _Optional[_Iterable[_Union[CoverElement, _Mapping]]] = ..., count: _Optional[int] = ..., log_mass: _Optional[float] = ..., target: _Optional[_Union[ByteTarget, str]] = ...) -> None: ...

class CoverElement(_message.Message):
    __slots__ = ("token_ids", "log_p")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOG_P_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    log_p: float
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., log_p: _Optional[float] = ...) -> None: ...

class HealRequest(_message.Message):
    __slots__ = ("model", "target", "prompts", "law", "seed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    LAW_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    model: str
    target: ByteTarget
    prompts: _containers.RepeatedCompositeFieldContainer[HealPrompt]
    law: _strategy_pb2.Law
    seed: int
    def __init__(self, model: _Optional[str] = ..., target: _Optional[_Union[ByteTarget, str]] = ..., prompts: _Optional[_Iterable[_Union[HealPrompt, _Mapping]]] = ..., law: _Optional[_Union[_strategy_pb2.Law, _Mapping]] = ..., seed: _Optional[int] = ...) -> None: ...

class HealPrompt(_message.Message):
    __slots__ = ("text", "token_ids", "off", "occurrence", "constraint")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OFF_FIELD_NUMBER: _ClassVar[int]
    OCCURRENCE_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _decoding_pb2.TokenIds
    off: bool
    occurrence: int
    constraint: _strategy_pb2.Constraint
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[_decoding_pb2.TokenIds, _Mapping]] = ..., off: bool = ..., occurrence: _Optional[int] = ..., constraint: _Optional[_Union[_strategy_pb2.Constraint, _Mapping]] = ...) -> None: ...

class HealResponse(_message.Message):
    __slots__ = ("prompts",)
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    prompts: _containers.RepeatedCompositeFieldContainer[HealedPrompt]
    def __init__(self, prompts: _Optional[_Iterable[_Union[HealedPrompt, _Mapping]]] = ...) -> None: ...

class HealedPrompt(_message.Message):
    __slots__ = ("token_ids", "overshoot", "kept", "log_cover", "log_weight", "log_p", "log_pruned", "method", "target", "status", "reason")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OVERSHOOT_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    LOG_COVER_FIELD_NUMBER: _ClassVar[int]
    LOG_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LOG_P_FIELD_NUMBER: _ClassVar[int]
    LOG_PRUNED_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    overshoot: bytes
    kept: int
    log_cover: float
    log_weight: float
    log_p: float
    log_pruned: float
    method: str
    target: ByteTarget
    status: _status_pb2.SequenceStatus
    reason: str
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., overshoot: _Optional[bytes] = ..., kept: _Optional[int] = ..., log_cover: _Optional[float] = ..., log_weight: _Optional[float] = ..., log_p: _Optional[float] = ..., log_pruned: _Optional[float] = ..., method: _Optional[str] = ..., target: _Optional[_Union[ByteTarget, str]] = ..., status: _Optional[_Union[_status_pb2.SequenceStatus, str]] = ..., reason: _Optional[str] = ...) -> None: ...
