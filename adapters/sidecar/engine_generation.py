"""What `Decoding` does for one request whose model runs in a vLLM server."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError

from midstream.adapters.sidecar.admission import Prepared, admitted, prepared
from midstream.adapters.sidecar.daemon import in_daemon_thread
from midstream.adapters.sidecar.engines import EngineGoneError, SegmentDrawn
from midstream.adapters.sidecar.generation import METRICS, check_length, kinds_of, prompt_of
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.logs import event
from midstream.adapters.sidecar.metrics import Metrics
from midstream.adapters.sidecar.models import ENGINE, EngineModel
from midstream.adapters.sidecar.wire.errors import quoted, refused, unavailable
from midstream.adapters.sidecar.wire.results import STATUSES, resampling_message, summary_message
from midstream.middleware.draw import NO_TOKEN, Status
from midstream.middleware.errors import StrategyError
from midstream.middleware.population import Population
from midstream.middleware.random import sequence_of
from midstream.middleware.strategy import AwrsSampler, Strategy
from midstream.proto.v1 import decoding_pb2 as pb
from midstream.proto.v1 import status_pb2 as status_pb

LOOK_SECONDS = 0.05
"""How often a thread looks whether its call has ended."""


def bounded(ready: Prepared, limits: Limits) -> Strategy:
    """The strategy that an engine is given: what `auto` takes there has a finite budget, too."""
    strategy = ready.strategy
    if ready.name != "awrs" or isinstance(strategy.sampler, AwrsSampler):
        return strategy
    sampler = AwrsSampler.model_validate({"awrs": {"rejects": limits.rejects}})
    return strategy.model_copy(update={"sampler": sampler})


class EngineGeneration:
    """A run over an engine, told segment by segment.

    sequence: of the prompt. kinds: of the events that are asked for. started: the first event.
    """

    def __init__(
        self,
        model: EngineModel,
        prompt: Sequence[int],
        ready: Prepared,
        limits: Limits,
        *,
        sequence: int,
        kinds: set[int],
    ) -> None:
        self.prompt = prompt
        self.started = pb.Started(
            model=model.alias,
            prompt_token_ids=prompt,
            vocabulary_fingerprint=model.vocabulary.fingerprint,
        )
        self._engine = model.engine
        self._ready = ready
        self._strategy = bounded(ready, limits)
        self._sequence = sequence
        self._kinds = kinds
        self._weights = dict.fromkeys(range(ready.strategy.smc.particles), 0.0)

    async def run(
        self, metrics: Metrics, tell: Callable[[pb.GenerateEvent], Awaitable[None]]
    ) -> status_pb.Summary:
        """To the end. Cancelled, the engine's requests end with it.

        Raises Refusal: INVALID_ARGUMENT for what the engine refuses, UNAVAILABLE for its faults.
        """
        loop = asyncio.get_running_loop()
        ended = threading.Event()

        async def written(events: Sequence[pb.GenerateEvent]) -> None:
            for each in events:
                await tell(each)

        def told(drawn: Sequence[SegmentDrawn], population: Population) -> None:
            """In the thread, which goes on once the client has taken the events."""
            events = self._events(drawn, population, metrics)
            writing = asyncio.run_coroutine_threadsafe(written(events), loop)
            while not ended.is_set():
                try:
                    return writing.result(LOOK_SECONDS)
                except TimeoutError:
                    continue
                except CancelledError:
                    return
            writing.cancel()

        def work() -> status_pb.Summary:
            result = self._engine.run(
                self.prompt,
                self._strategy,
                sequence=self._sequence,
                told=told,
                cancelled=ended.is_set,
            )
            return summary_message(
                result,
                sampler=self._ready.name,
                sampler_reason=self._ready.reason,
                seed=self._strategy.seed,
            )

        try:
            return await in_daemon_thread("engine", work)
        except StrategyError as error:
            raise refused("strategy", "what the engine refuses", quoted(error.accepted)) from None
        except EngineGoneError as error:
            event("engine gone", error=str(error))
            raise unavailable("the engine of this model failed, or cannot be reached") from None
        finally:
            ended.set()

    def _events(
        self, drawn: Sequence[SegmentDrawn], population: Population, metrics: Metrics
    ) -> list[pb.GenerateEvent]:
        """Of one segment: its tokens, step by step, and its resampling."""
        steps: dict[int, list[pb.ParticleToken]] = {}
        for each in drawn:
            begin = len(each.prefix.generated)
            for i, token in enumerate(self._tokens(each, metrics)):
                steps.setdefault(begin + i, []).append(token)
        self._weights = {each.index: each.log_weight for each in population.particles}
        ancestors, ess = population.ancestry[-1], population.ess[-1]
        if ess > 0:
            metrics.effective_sample(METRICS, ess, len(ancestors))
        events = []
        if pb.EVENT_KIND_TOKENS in self._kinds:
            for position in sorted(steps):
                tokens = pb.Tokens(position=position, tokens=steps[position])
                events.append(pb.GenerateEvent(tokens=tokens))
        resampled = ancestors != tuple(range(len(ancestors)))
        if resampled and pb.EVENT_KIND_RESAMPLINGS in self._kinds:
            told = resampling_message(max(steps, default=-1) + 1, ancestors, ess)
            events.append(pb.GenerateEvent(resampling=told))
        return events

    def _tokens(self, drawn: SegmentDrawn, metrics: Metrics) -> list[pb.ParticleToken]:
        """One particle's. Its weight is known where the segment ends."""
        segment, prefix = drawn.segment, drawn.prefix
        status: Status = segment.status
        length = len(prefix.generated) + len(segment.tokens)
        if status == "running" and length == self._strategy.limits.max_new_tokens:
            status = "length"
        tokens = [*segment.tokens]
        if status in ("dead", "exhausted"):
            tokens.append(NO_TOKEN)
        spelled = self._engine.vocabulary.token_bytes
        messages = [
            pb.ParticleToken(
                particle=prefix.slot,
                token=token,
                text=b"" if token == NO_TOKEN else spelled[token],
                log_weight=math.nan,
                status=STATUSES["running"],
            )
            for token in tokens
        ]
        for _ in messages[:-1]:
            metrics.draw(METRICS, "running", 0)
        if messages:
            metrics.draw(METRICS, status, segment.checks)
            messages[-1].log_weight = self._weights[prefix.slot] + segment.log_weight
            messages[-1].status = STATUSES[status]
        return messages


def engine_generation(
    model: EngineModel, request: pb.GenerateRequest, limits: Limits, *, told: bool
) -> EngineGeneration:
    """Check a request and compile what it asks for, as `generation` does for a model of our own."""
    strategy = admitted(request.strategy, limits, ENGINE)
    asked = kinds_of(request.events)
    prompt = prompt_of(model, request, limits)
    check_length(model, prompt, strategy, limits)
    if strategy.law.temperature == 0:
        raise refused("strategy.law.temperature", "0", "above 0: particles are draws")
    ready = prepared(strategy, model.vocabulary, limits)
    sequence = sequence_of(prompt, request.occurrence)
    kinds = asked if told else set()
    return EngineGeneration(model, prompt, ready, limits, sequence=sequence, kinds=kinds)
