# mypy: ignore-errors
from midstream.proto.v1 import status_pb2 as _status_pb2
from midstream.proto.v1 import strategy_pb2 as _strategy_pb2
from midstream.proto.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Answer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWER_UNSPECIFIED: _ClassVar[Answer]
    ANSWER_TOKEN: _ClassVar[Answer]
    ANSWER_MASK: _ClassVar[Answer]
    ANSWER_LOGITS: _ClassVar[Answer]
ANSWER_UNSPECIFIED: Answer
ANSWER_TOKEN: Answer
ANSWER_MASK: Answer
ANSWER_LOGITS: Answer

class ProcessRequest(_message.Message):
    __slots__ = ("handshake", "step", "fork", "close")
    HANDSHAKE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FORK_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    handshake: Handshake
    step: Step
    fork: Fork
    close: Close
    def __init__(self, handshake: _Optional[_Union[Handshake, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., fork: _Optional[_Union[Fork, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class ProcessResponse(_message.Message):
    __slots__ = ("ready", "result", "summary")
    READY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    ready: Ready
    result: Result
    summary: _status_pb2.Summary
    def __init__(self, ready: _Optional[_Union[Ready, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., summary: _Optional[_Union[_status_pb2.Summary, _Mapping]] = ...) -> None: ...

class Handshake(_message.Message):
    __slots__ = ("protocol_version", "tokenizer_json", "vocabulary_fingerprint", "tokens", "eos_ids", "row_size", "dtype", "strategy", "answer", "sequence", "regions")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_JSON_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    EOS_IDS_FIELD_NUMBER: _ClassVar[int]
    ROW_SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    tokenizer_json: bytes
    vocabulary_fingerprint: str
    tokens: TokenTable
    eos_ids: _containers.RepeatedScalarFieldContainer[int]
    row_size: int
    dtype: _tensor_pb2.Dtype
    strategy: _strategy_pb2.Strategy
    answer: Answer
    sequence: int
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    def __init__(self, protocol_version: _Optional[int] = ..., tokenizer_json: _Optional[bytes] = ..., vocabulary_fingerprint: _Optional[str] = ..., tokens: _Optional[_Union[TokenTable, _Mapping]] = ..., eos_ids: _Optional[_Iterable[int]] = ..., row_size: _Optional[int] = ..., dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., strategy: _Optional[_Union[_strategy_pb2.Strategy, _Mapping]] = ..., answer: _Optional[_Union[Answer, str]] = ..., sequence: _Optional[int] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ...) -> None: ...

class TokenTable(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, tokens: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("name", "key", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    key: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., key: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("protocol_version", "vocabulary_fingerprint", "vocabulary_size", "sampler", "sampler_reason")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_REASON_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    vocabulary_fingerprint: str
    vocabulary_size: int
    sampler: str
    sampler_reason: str
    def __init__(self, protocol_version: _Optional[int] = ..., vocabulary_fingerprint: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., sampler: _Optional[str] = ..., sampler_reason: _Optional[str] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("number", "rows", "logits")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    number: int
    rows: _containers.RepeatedCompositeFieldContainer[SequenceRow]
    logits: _tensor_pb2.Tensor
    def __init__(self, number: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[SequenceRow, _Mapping]]] = ..., logits: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class SequenceRow(_message.Message):
    __slots__ = ("id", "token", "sequence")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    id: int
    token: int
    sequence: int
    def __init__(self, id: _Optional[int] = ..., token: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("number", "rows", "parents", "tokens", "resampling", "tensor")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESAMPLING_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    number: int
    rows: _containers.RepeatedCompositeFieldContainer[SequenceResult]
    parents: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    resampling: _status_pb2.Resampling
    tensor: _tensor_pb2.Tensor
    def __init__(self, number: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[SequenceResult, _Mapping]]] = ..., parents: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., resampling: _Optional[_Union[_status_pb2.Resampling, _Mapping]] = ..., tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class SequenceResult(_message.Message):
    __slots__ = ("id", "token", "log_weight", "total_log_weight", "status", "reason", "checks")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOG_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LOG_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    id: int
    token: int
    log_weight: float
    total_log_weight: float
    status: _status_pb2.SequenceStatus
    reason: str
    checks: int
    def __init__(self, id: _Optional[int] = ..., token: _Optional[int] = ..., log_weight: _Optional[float] = ..., total_log_weight: _Optional[float] = ..., status: _Optional[_Union[_status_pb2.SequenceStatus, str]] = ..., reason: _Optional[str] = ..., checks: _Optional[int] = ...) -> None: ...

class Fork(_message.Message):
    __slots__ = ("parent", "to", "sequence")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    parent: int
    to: int
    sequence: int
    def __init__(self, parent: _Optional[int] = ..., to: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...
