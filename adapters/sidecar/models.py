"""The models that a server is started with, by alias."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from midstream.adapters.sidecar.batching import Room
from midstream.adapters.sidecar.byte_laws import ByteLaws
from midstream.adapters.sidecar.engines import Engine, EngineAddress, connect
from midstream.adapters.sidecar.forwards import Forwards
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.logs import event
from midstream.adapters.sidecar.pool import processors
from midstream.adapters.sidecar.wire.errors import not_found, refused
from midstream.middleware.errors import InputError
from midstream.middleware.vocabulary import Vocabulary

if TYPE_CHECKING:
    from midstream.adapters.transformers import TransformersHost

EMBEDDED = "embedded"
ENGINE = "vllm"
"""The alias of the model of a vLLM server."""

ENDLESS_TOKENS = 1 << 20
"""Prompt and generated tokens together, of a model that says no limit itself."""

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model and what a service needs of it.

    max_tokens: prompt and generated tokens together. alone: why each of its requests has forward
    passes of its own; empty where they share them. forwards: makes the rows of one server. bytes:
    its byte laws.
    """

    alias: str
    host: Literal["embedded", "transformers"]
    vocabulary: Vocabulary
    max_tokens: int
    encode: Callable[[str], list[int]]
    forwards: Callable[[], Forwards]
    room: Room
    bytes: ByteLaws
    alone: str = ""


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model that an engine draws from, for `Decoding` alone."""

    alias: str
    engine: Engine
    host: Literal["vllm"] = "vllm"

    @property
    def vocabulary(self) -> Vocabulary:
        """The engine's."""
        return self.engine.vocabulary

    @property
    def max_tokens(self) -> int:
        """Prompt and generated tokens together."""
        return self.engine.max_tokens

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt."""
        return self.engine.encode(text)


Served: TypeAlias = ServedModel | EngineModel

Source: TypeAlias = str | EngineAddress
"""For `load_model`, or where an engine is."""


class Models:
    """The models of a server; the first one is the default.

    sources: for each alias "embedded", a folder, or a repository of the Hub, as `load_model` takes,
        or where an engine is. limits: what all requests of one have side by side.
    Raises InputError for no model, and for an alias that is no plain word.
    """

    def __init__(self, sources: Mapping[str, Source], limits: Limits | None = None) -> None:
        if not sources:
            raise InputError("models", "none", "at least one model")
        for alias in sources:
            if not _ALIAS.fullmatch(alias):
                accepted = "letters, digits, dots, dashes and underscores, at most 64"
                raise InputError("alias", alias, accepted)
        self._sources = dict(sources)
        self._limits = limits or Limits()
        self._loaded: dict[str, Served] = {}

    @property
    def default(self) -> str:
        """The alias of the default model."""
        return next(iter(self._sources))

    def load(self) -> None:
        """Load those that are not loaded yet. Takes seconds; raises what `load_model` raises.

        From then on torch leaves a processor to the threads that draw and answer.
        """
        _spare_a_processor()
        for alias, source in self._sources.items():
            if alias in self._loaded:
                continue
            if isinstance(source, EngineAddress):
                self._loaded[alias] = EngineModel(alias, connect(source))
                event("model", alias=alias, engine=ENGINE)
            else:
                model = _served(alias, source, self._limits)
                self._loaded[alias] = model
                event("model", alias=alias, shared=not model.alone, reason=model.alone)

    def get(self, alias: str) -> ServedModel:
        """A loaded model that this process runs; an empty alias is the default one's.

        Raises Refusal, NOT_FOUND, and INVALID_ARGUMENT for an engine's model.
        """
        model = self.any(alias)
        if isinstance(model, EngineModel):
            raise refused("model", "one that an engine runs", "one that this server runs itself")
        return model

    def any(self, alias: str) -> Served:
        """A loaded model, whoever runs it. Raises Refusal, NOT_FOUND."""
        model = self._loaded.get(alias or self.default)
        if model is None:
            raise not_found("model", alias, "one of " + ", ".join(self._sources))
        return model

    def __iter__(self) -> Iterator[Served]:
        """Those that are loaded, the default one first."""
        return iter([self._loaded[alias] for alias in self._sources if alias in self._loaded])

    def vocabularies(self) -> list[Vocabulary]:
        """Of those that are loaded."""
        return [model.vocabulary for model in self]


def sources_of(arguments: Iterable[str]) -> dict[str, str]:
    """The models that are named on a command line, each "embedded" or "alias=source".

    Raises InputError for anything else, and for an alias that comes twice.
    """
    sources: dict[str, str] = {}
    for argument in arguments:
        alias, equals, source = argument.partition("=")
        if not equals and alias == EMBEDDED:
            source = EMBEDDED
        if not alias or not source:
            raise InputError("--model", argument, '"embedded", or ALIAS=FOLDER')
        if alias in sources:
            raise InputError("--model", argument, f"an alias other than {alias}, which is taken")
        sources[alias] = source
    return sources


def _spare_a_processor() -> None:
    """A thread of torch that waits for its processor keeps all the others spinning."""
    import torch

    torch.set_num_threads(max(min(torch.get_num_threads(), processors() - 1), 1))


def _served(alias: str, source: str, limits: Limits) -> ServedModel:
    from midstream.adapters.cli.model import load_model
    from midstream.adapters.sidecar.shareable import token_bytes, why_not_shared
    from midstream.adapters.sidecar.shared_rows import SharedRows
    from midstream.adapters.sidecar.single_rows import SingleRows

    loaded = load_model(source)
    host: TransformersHost = loaded.host
    try:
        size = token_bytes(host)
    except Exception as fault:  # models raise what their parts raise
        got = f"{alias}, which fails to read a token ({type(fault).__name__})"
        accepted = "a causal language model that transformers can read token by token"
        raise InputError("models", got, accepted) from fault
    alone = why_not_shared(host)
    return ServedModel(
        alias=alias,
        host="embedded" if source == EMBEDDED else "transformers",
        vocabulary=host.vocabulary,
        max_tokens=host.context_length or ENDLESS_TOKENS,
        encode=loaded.encode,
        forwards=(lambda: SingleRows(host)) if alone else (lambda: SharedRows(host)),
        room=Room(limits.rows, limits.cache_bytes // size),
        bytes=ByteLaws(host),
        alone=alone,
    )
