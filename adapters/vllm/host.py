"""`VllmHost`: particles over an engine in this process."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from midstream.adapters.vllm.engines import Asked, engine_of
from midstream.adapters.vllm.request import ARGUMENT
from midstream.adapters.vllm.rows import EngineRows, Float32, Prompts, check_shown, read_engine
from midstream.adapters.vllm.segment_requests import fields_of, key_of, prompt_of, segment_of
from midstream.adapters.vllm.vocabulary import engine_vocabulary
from midstream.adapters.vllm.weights import told_of
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.segments import Continuation, Segment
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.v1.engine.async_llm import AsyncLLM

_POLL_SECONDS = 0.01
_NEEDED = (
    'LLM(..., logits_processors=["midstream.adapters.vllm:ConstrainedSampling"], '
    'worker_extension_cls="midstream.adapters.vllm.WeightsExtension")'
)


class VllmHost:
    """A host over `vllm.LLM` or `AsyncLLM`, as `Segments`: see
    `midstream.middleware.segments.run_segments`.

    Particles are requests of one engine batch; a continued one is a longer prompt, which hits the
    prefix cache. Of an AsyncLLM this is for other threads than the one that runs its event loop.
    Raises InputError for an engine without our processor or worker extension.
    """

    def __init__(self, llm: LLM | AsyncLLM) -> None:
        self._llm: Any = llm
        self._engine = engine_of(llm)
        try:
            self._engine.call("midstream_vocabulary")
        except Exception as error:  # whatever way the workers refuse it
            raise InputError("llm", f"an engine that fails ({error})", _NEEDED) from error
        self._vocabulary = engine_vocabulary(self._engine.config)
        self._name = secrets.token_hex(8)
        self._requests = itertools.count()

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""
        return self._vocabulary

    @property
    def context_length(self) -> int:
        """How many tokens a prompt may have: one more has to be drawn."""
        return int(self._engine.config.model_config.max_model_len) - 1

    @property
    def tokenizer(self) -> Any:
        """The engine's own."""
        return self._llm.get_tokenizer()

    def start(self, prompts: Sequence[Sequence[int]]) -> EngineRows:
        """Prompts whose next-token laws are wanted, as `Rows`: for byte laws and exact healing.

        The logits are log probabilities at temperature 1, read by requests of one token. Raises
        InputError for an engine that does not show all of them: it needs `max_logprobs=-1`.
        """
        check_shown(self._engine.config.model_config, len(self._vocabulary))
        return EngineRows(self._laws, prompts)

    def prepare(self, strategy: Strategy) -> None:
        """Compile a strategy's constraint in the engine, and wait for it.

        Raises StrategyError where it does not compile.
        """
        text = strategy.model_dump_json(exclude_unset=True)
        while True:
            state, reason = self._engine.call("midstream_prepare", text)
            if state == "failed":
                accepted = f"a constraint that compiles ({reason})"
                raise StrategyError("strategy.constraint", "one that does not", accepted)
            if state == "ready":
                return
            time.sleep(_POLL_SECONDS)

    def extend(
        self,
        prefixes: Sequence[Continuation],
        steps: int,
        strategy: Strategy,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Segment]:
        """See `Segments.extend`. A cancelled run is aborted in the engine within one step."""
        asked: list[Asked] = [
            (self._request_name(), prompt_of(prefix), _params(prefix, steps, strategy))
            for prefix in prefixes
        ]
        return self._segments(prefixes, self._engine.complete(asked, cancelled))

    def _laws(self, prompts: Prompts) -> Float32:
        named = {self._request_name(): prompt for prompt in prompts}
        return read_engine(self._engine, named, len(self._vocabulary))

    def _request_name(self) -> str:
        """One that no other request of the engine has."""
        return f"midstream-{self._name}-{next(self._requests)}"

    def _segments(self, prefixes: Sequence[Continuation], answers: list[Any]) -> list[Segment]:
        done = [i for i, answer in enumerate(answers) if answer is not None]
        keys = [key_of(prefixes[i]) for i in done]
        rows = told_of(keys, self._engine.call("midstream_records", keys))
        found = dict(zip(done, rows, strict=True))
        return [
            segment_of(prefix, answers[i].token_ids, answers[i].finish_reason, found[i])
            if i in found
            else Segment((), 0.0, 0, "cancelled", "stopped before its first token")
            for i, prefix in enumerate(prefixes)
        ]


def _params(prefix: Continuation, steps: int, strategy: Strategy) -> Any:
    from vllm import SamplingParams

    fields = fields_of(prefix, steps, strategy)
    asked = fields.pop(ARGUMENT)
    return SamplingParams(**fields, detokenize=False, extra_args={ARGUMENT: asked})
