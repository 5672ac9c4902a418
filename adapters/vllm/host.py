"""`VllmHost`: particles over an engine in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from midstream.adapters.vllm.request import ARGUMENT
from midstream.adapters.vllm.segment_requests import fields_of, key_of, prompt_of, segment_of
from midstream.adapters.vllm.vocabulary import engine_vocabulary
from midstream.adapters.vllm.weights import read_records
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.segments import Continuation, Segment
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vllm import LLM

_POLL_SECONDS = 0.01
_NEEDED = (
    'LLM(..., logits_processors=["midstream.adapters.vllm:ConstrainedSampling"], '
    'worker_extension_cls="midstream.adapters.vllm.WeightsExtension")'
)


class VllmHost:
    """A host over `vllm.LLM`, as `Segments`: see `midstream.middleware.segments.run_segments`.

    Particles are requests of one engine batch; a continued one is a longer prompt, which hits the
    prefix cache. Raises InputError for an engine without our processor or worker extension.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        try:
            llm.collective_rpc("midstream_records", args=([],))
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise InputError("llm", "an engine without the worker extension", _NEEDED) from error
        self._vocabulary = engine_vocabulary(llm.llm_engine.vllm_config)
        self._requests = 0

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""
        return self._vocabulary

    def prepare(self, strategy: Strategy) -> None:
        """Compile a strategy's constraint in the engine, and wait for it.

        Raises StrategyError where it does not compile.
        """
        text = strategy.model_dump_json(exclude_unset=True)
        while True:
            state, reason = self._llm.collective_rpc("midstream_prepare", args=(text,))[0]
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
        engine = self._llm.llm_engine
        asked: dict[str, int] = {}
        for index, prefix in enumerate(prefixes):
            self._requests += 1
            name = f"midstream-{prefix.run}-{self._requests}"
            engine.add_request(
                name, {"prompt_token_ids": prompt_of(prefix)}, _params(prefix, steps, strategy)
            )
            asked[name] = index
        answers: list[Any] = [None] * len(prefixes)
        while engine.has_unfinished_requests():
            if cancelled is not None and cancelled():
                engine.abort_request(list(asked))
                break
            for output in engine.step():
                if output.request_id in asked:
                    answers[asked[output.request_id]] = output.outputs[0]
        return self._segments(prefixes, answers)

    def _segments(self, prefixes: Sequence[Continuation], answers: list[Any]) -> list[Segment]:
        done = [i for i, answer in enumerate(answers) if answer is not None]
        rows = read_records(self._llm, [key_of(prefixes[i]) for i in done])
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
