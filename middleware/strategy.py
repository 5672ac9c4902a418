"""How to decode, as data: the same JSON in a file, in a request and on a wire.

Every field has a default, so `Strategy()` is one draw of the model's own law; each capability of
midstream adds a field.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypedDict

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from midstream.middleware.constraints import Constraint
from midstream.middleware.errors import StrategyError
from midstream.middleware.law import Law
from midstream.middleware.population import Finished
from midstream.middleware.resampling import Resampling
from midstream.middleware.sampling import AWRS, Sampler, sampler_of
from midstream.middleware.strategy_constraint import ANY_TEXT, DATA, KINDS, TAG, ConstraintData
from midstream.middleware.strategy_errors import strategy_error
from midstream.middleware.strategy_hosts import check_host

Count: TypeAlias = Annotated[int, Field(strict=True, ge=1)]
Number: TypeAlias = Annotated[float, Field(strict=True)]


class AwrsData(BaseModel):
    """See `midstream.middleware.sampling.AWRS`."""

    model_config = DATA
    accepts: Annotated[int, Field(strict=True, ge=2)] = 4
    rejects: Count | None = None
    estimator: Literal["geometric", "recursive"] = "geometric"

    @model_validator(mode="after")
    def _together(self) -> Self:
        self.build()
        return self

    def build(self) -> AWRS:
        """The sampler. StrategyError where the fields contradict each other."""
        return AWRS(self.accepts, self.rejects, self.estimator)


class AwrsSampler(BaseModel):
    """Adaptive weighted rejection."""

    model_config = DATA
    awrs: AwrsData


SAMPLERS = '"auto", "mask", or {"awrs": {}}, with accepts, rejects and estimator where they differ'


def _sampler_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return TAG + "name" if value in ("auto", "mask") else None
    named = isinstance(value, AwrsSampler) or (isinstance(value, dict) and "awrs" in value)
    return TAG + "awrs" if named else None


SamplerData: TypeAlias = Annotated[
    Annotated[Literal["auto", "mask"], Tag("kind:name")] | Annotated[AwrsSampler, Tag("kind:awrs")],
    Discriminator(_sampler_kind, custom_error_type="kind", custom_error_message=SAMPLERS),
]


class SmcData(BaseModel):
    """Particles and how they are resampled; see `midstream.middleware.smc.run`."""

    model_config = DATA
    particles: Count = 1
    ess_threshold: Annotated[Number, Field(ge=0, le=1)] = 0.5
    resampling: Resampling = "systematic"
    resample_every: Count = 1
    finished: Finished = "aside"


class LawData(BaseModel):
    """The law of the next token before the constraint; see `midstream.middleware.law.Law`."""

    model_config = DATA
    temperature: Annotated[Number, Field(ge=0)] = 1.0
    top_k: Annotated[int, Field(strict=True, ge=0)] = 0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    truncation: Literal["target", "after_mask"] | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        self.build()
        return self

    def build(self) -> Law:
        """The law. StrategyError where a truncation does not say which of two laws it means."""
        return Law(self.temperature, self.top_k, self.top_p, self.min_p, self.truncation)


class HealingData(BaseModel):
    """A prompt that may end inside a token: its end is read as bytes and drawn again, exactly.

    target: which token strings count; see `midstream.middleware.bytes.healing.Healer`.
    """

    model_config = DATA
    target: Literal["canonical", "all"] = "canonical"


class LimitsData(BaseModel):
    """Where decoding stops. max_new_tokens: end of sequence included."""

    model_config = DATA
    max_new_tokens: Count = 256


class RunOptions(TypedDict):
    """The arguments of `smc.run` that a strategy fixes."""

    particles: int
    max_new_tokens: int
    seed: int
    sampler: Sampler
    law: Law
    ess_threshold: float
    resampling: Resampling
    resample_every: int
    finished: Finished


class Strategy(BaseModel):
    """The whole description of how to decode.

    constraint: what the text must satisfy; None: nothing, any text will do.
    sampler: how a token is drawn. smc: particles and resampling. law: temperature and truncation.
    seed: from 0 to 2^64 - 1. limits: where decoding stops. healing: of the prompt's end; None: the
    prompt's ids are what the model goes on from.

    Immutable. Raises StrategyError, which names the field, for data that is no strategy; what the
    constraint says is read by `build_constraint`.
    """

    model_config = DATA
    constraint: ConstraintData | None = None
    sampler: SamplerData = "auto"
    smc: SmcData = SmcData()
    law: LawData = LawData()
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 64)] = 0
    limits: LimitsData = LimitsData()
    healing: HealingData | None = None

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise strategy_error(error, _PARTS) from None

    @classmethod
    def load(cls, source: str | PathLike[str]) -> Strategy:
        """A strategy from JSON: a text that begins with a brace, or else the path of a file.

        Raises StrategyError where the file cannot be read, or holds no strategy.
        """
        text = str(source)
        if not text.lstrip().startswith("{"):
            text = _read(Path(source))
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise strategy_error(error, _PARTS) from None

    def build_constraint(self) -> Constraint:
        """The constraint to compile for a vocabulary; `ANY_TEXT` where there is none.

        Raises ConstraintError where it does not parse.
        """
        return ANY_TEXT if self.constraint is None else self.constraint.build()

    def build_sampler(self) -> Sampler:
        """The sampler."""
        if isinstance(self.sampler, AwrsSampler):
            return self.sampler.awrs.build()
        return sampler_of(self.sampler)

    def build_law(self) -> Law:
        """The law of the next token."""
        return self.law.build()

    def run_options(self) -> RunOptions:
        """All that `smc.run` needs besides rows and a matcher."""
        return RunOptions(
            particles=self.smc.particles,
            max_new_tokens=self.limits.max_new_tokens,
            seed=self.seed,
            sampler=self.build_sampler(),
            law=self.build_law(),
            ess_threshold=self.smc.ess_threshold,
            resampling=self.smc.resampling,
            resample_every=self.smc.resample_every,
            finished=self.smc.finished,
        )

    def validate_for(self, host: str) -> None:
        """StrategyError where a host cannot do what is asked.

        host: one of `midstream.middleware.strategy_hosts.HOSTS`.
        """
        check_host(self, host)


_PARTS: dict[str, type[BaseModel]] = {
    "": Strategy,
    "smc": SmcData,
    "law": LawData,
    "limits": LimitsData,
    "healing": HealingData,
    "awrs": AwrsData,
    TAG + "awrs": AwrsSampler,
    **{TAG + kind: data for kind, data in KINDS.items()},
}
"""The models of a strategy, by the last key or tag on the way to them."""


def _read(path: Path) -> str:
    accepted = "JSON text, or the path of a readable file of it"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise StrategyError("strategy", f"{path} ({reason})", accepted) from None
