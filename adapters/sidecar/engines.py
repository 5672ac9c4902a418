"""vLLM servers behind `Generate`: where one is, and a run over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from midstream.middleware.errors import InputError
from midstream.middleware.particles import SMCResult
from midstream.middleware.population import Population
from midstream.middleware.segments import Continuation, Segment, run_segments
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

if TYPE_CHECKING:
    from midstream.adapters.vllm.server_host import VllmServerHost

SERVER = "a vLLM server with midstream's processor, worker extension and endpoints (docs/vllm.md)"


class EngineGoneError(RuntimeError):
    """The engine cannot be reached, failed, or lost what it had drawn."""


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """A vLLM server. url: without /v1. tokenizer: the folder of its model's. api_key: its own."""

    url: str
    tokenizer: str
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class SegmentDrawn:
    """What an engine drew for one particle, before any resampling."""

    prefix: Continuation
    segment: Segment


Told = Callable[[Sequence[SegmentDrawn], Population], None]
"""Called after each segment: what was drawn, and the particles after their resampling."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A server that answered: its vocabulary, and how many tokens its model takes."""

    address: EngineAddress
    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    max_tokens: int

    def run(
        self,
        prompt: Sequence[int],
        strategy: Strategy,
        *,
        sequence: int,
        told: Told,
        cancelled: Callable[[], bool],
    ) -> SMCResult:
        """`run_segments`, in the thread that calls. Each run has connections of its own.

        Raises StrategyError for what the server refuses, EngineGoneError for its faults.
        """
        from midstream.adapters.vllm.server_host import EngineError
        from midstream.adapters.vllm.weights import RecordsLostError

        drawn: list[SegmentDrawn] = []
        try:
            with _host(self.address, self.vocabulary) as host:
                host.prepare(strategy)
                return run_segments(
                    _Noted(host, drawn),
                    prompt,
                    strategy,
                    sequence=sequence,
                    on_segment=lambda population: told(drawn, population),
                    cancelled=cancelled,
                )
        except (EngineError, RecordsLostError) as error:
            raise EngineGoneError(type(error).__name__) from error


def connect(address: EngineAddress) -> Engine:
    """Ask a server what it has. InputError where none answers, or one of another tokenizer."""
    tokenizer = _tokenizer(address)
    try:
        from midstream.adapters.vllm.server_host import EngineError
    except ImportError as error:
        accepted = "the package that calls it: pip install httpx"
        raise InputError("vllm_url", f"no package {error.name}", accepted) from None
    try:
        with _host(address, tokenizer) as host:
            return Engine(
                address,
                host.vocabulary,
                lambda text: list(tokenizer(text)["input_ids"]),
                _max_tokens(address),
            )
    except EngineError as error:
        raise InputError("vllm_url", f"{address.url} ({error})", SERVER) from error


def _tokenizer(address: EngineAddress) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(address.tokenizer)
    except Exception as fault:  # transformers raises what its parts raise
        got = f"{address.tokenizer} ({type(fault).__name__})"
        raise InputError("vllm_tokenizer", got, "a folder with the model's tokenizer") from fault


def _host(address: EngineAddress, tokenizer: Any) -> VllmServerHost:
    from midstream.adapters.vllm.server_host import VllmServerHost

    return VllmServerHost(address.url, tokenizer, api_key=address.api_key)


def _max_tokens(address: EngineAddress) -> int:
    """Of the first model, prompt and text together."""
    import httpx

    headers = {"Authorization": f"Bearer {address.api_key}"} if address.api_key else {}
    answer = httpx.get(f"{address.url.rstrip('/')}/v1/models", headers=headers, timeout=30)
    return int(answer.json()["data"][0]["max_model_len"])


class _Noted:
    """A host whose last segments are noted: the particles are resampled once they are told."""

    def __init__(self, host: VllmServerHost, drawn: list[SegmentDrawn]) -> None:
        self._host = host
        self._drawn = drawn

    @property
    def vocabulary(self) -> Vocabulary:
        """See `Segments`."""
        return self._host.vocabulary

    def extend(
        self,
        prefixes: Sequence[Continuation],
        steps: int,
        strategy: Strategy,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Segment]:
        """See `Segments`."""
        segments = self._host.extend(prefixes, steps, strategy, cancelled=cancelled)
        self._drawn[:] = map(SegmentDrawn, prefixes, segments)
        return segments
