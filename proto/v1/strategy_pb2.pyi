# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Strategy(_message.Message):
    __slots__ = ("constraint", "sampler", "smc", "law", "seed", "limits", "healing")
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_FIELD_NUMBER: _ClassVar[int]
    SMC_FIELD_NUMBER: _ClassVar[int]
    LAW_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    HEALING_FIELD_NUMBER: _ClassVar[int]
    constraint: Constraint
    sampler: Sampler
    smc: Smc
    law: Law
    seed: int
    limits: Limits
    healing: Healing
    def __init__(self, constraint: _Optional[_Union[Constraint, _Mapping]] = ..., sampler: _Optional[_Union[Sampler, _Mapping]] = ..., smc: _Optional[_Union[Smc, _Mapping]] = ..., law: _Optional[_Union[Law, _Mapping]] = ..., seed: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., healing: _Optional[_Union[Healing, _Mapping]] = ...) -> None: ...

class Constraint(_message.Message):
    __slots__ = ("regex", "json_schema", "grammar", "choice", "all_of")
    REGEX_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    ALL_OF_FIELD_NUMBER: _ClassVar[int]
    regex: str
    json_schema: JsonSchema
    grammar: str
    choice: Choice
    all_of: AllOf
    def __init__(self, regex: _Optional[str] = ..., json_schema: _Optional[_Union[JsonSchema, _Mapping]] = ..., grammar: _Optional[str] = ..., choice: _Optional[_Union[Choice, _Mapping]] = ..., all_of: _Optional[_Union[AllOf, _Mapping]] = ...) -> None: ...

class JsonSchema(_message.Message):
    __slots__ = ("json_schema", "whitespace")
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    WHITESPACE_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    whitespace: str
    def __init__(self, json_schema: _Optional[str] = ..., whitespace: _Optional[str] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class AllOf(_message.Message):
    __slots__ = ("constraints",)
    CONSTRAINTS_FIELD_NUMBER: _ClassVar[int]
    constraints: _containers.RepeatedCompositeFieldContainer[Constraint]
    def __init__(self, constraints: _Optional[_Iterable[_Union[Constraint, _Mapping]]] = ...) -> None: ...

class Sampler(_message.Message):
    __slots__ = ("name", "awrs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AWRS_FIELD_NUMBER: _ClassVar[int]
    name: str
    awrs: Awrs
    def __init__(self, name: _Optional[str] = ..., awrs: _Optional[_Union[Awrs, _Mapping]] = ...) -> None: ...

class Awrs(_message.Message):
    __slots__ = ("accepts", "rejects", "estimator")
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    REJECTS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    accepts: int
    rejects: int
    estimator: str
    def __init__(self, accepts: _Optional[int] = ..., rejects: _Optional[int] = ..., estimator: _Optional[str] = ...) -> None: ...

class Smc(_message.Message):
    __slots__ = ("particles", "ess_threshold", "resampling", "resample_every", "finished")
    PARTICLES_FIELD_NUMBER: _ClassVar[int]
    ESS_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    RESAMPLING_FIELD_NUMBER: _ClassVar[int]
    RESAMPLE_EVERY_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    particles: int
    ess_threshold: float
    resampling: str
    resample_every: int
    finished: str
    def __init__(self, particles: _Optional[int] = ..., ess_threshold: _Optional[float] = ..., resampling: _Optional[str] = ..., resample_every: _Optional[int] = ..., finished: _Optional[str] = ...) -> None: ...

class Law(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "truncation")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    truncation: str
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., truncation: _Optional[str] = ...) -> None: ...

class Healing(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_new_tokens",)
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    def __init__(self, max_new_tokens: _Optional[int] = ...) -> None: ...
