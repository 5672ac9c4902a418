"""Sequential Monte Carlo as `model.generate(custom_generate=smc(...))`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from midstream.adapters.transformers.host import StaticSize, TransformersHost
from midstream.adapters.transformers.processed import ProcessedRows
from midstream.adapters.transformers.prompts import unpadded
from midstream.adapters.transformers.settings import check_settings, law_of, target_processors
from midstream.adapters.transformers.streaming import CommonPrefix
from midstream.logits_processors.fit import CompiledConstraints
from midstream.logits_processors.generation_call import GenerationCall, calling_generate
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.host import Rows
from midstream.middleware.law import Law
from midstream.middleware.matcher import Matcher
from midstream.middleware.particles import Particle, SMCResult
from midstream.middleware.population import Finished
from midstream.middleware.potentials import Potential
from midstream.middleware.random import sequence_of
from midstream.middleware.resampling import Resampling
from midstream.middleware.sampling import Sampler, sampler_of
from midstream.middleware.smc import run


@dataclass
class SMCOutput(ModelOutput):
    """What `generate(return_dict_in_generate=True)` returns.

    sequences: int64 [P N, L], prompts and particles, padded on the right.
    log_weights: float64 [P N]. results: one SMCResult for each of the P prompts.
    """

    sequences: Tensor | None = None
    log_weights: Tensor | None = None
    results: tuple[SMCResult, ...] | None = None


class ParticleDecoding:
    """What `smc` returns; `generate()` calls it. See there."""

    def __init__(
        self,
        constraints: CompiledConstraints,
        *,
        particles: int,
        sampler: Sampler,
        truncation: Literal["target", "after_mask"] | None,
        streamer: Any,
        on_step: Callable[[Sequence[Particle]], None] | None,
        options: dict[str, Any],
    ) -> None:
        self._constraints = constraints
        self._particles = particles
        self._sampler = sampler
        self._truncation = truncation
        self._streamer = streamer
        self._on_step = on_step
        self._options = options
        self.results: tuple[SMCResult, ...] = ()

    @property
    def result(self) -> SMCResult:
        """The result of the latest call with one prompt; `results` has those of several."""
        if len(self.results) != 1:
            got = f"{len(self.results)} results"
            raise InputError("result", got, "a call with one prompt; see `results`")
        return self.results[0]

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,  # [P, L], padded on the left
        logits_processor: Any = (),
        stopping_criteria: Any = (),
        generation_config: Any = None,
        **model_kwargs: Any,
    ) -> Tensor | SMCOutput:
        """Run the prompts one after another, after all settings have been checked."""
        config = generation_config
        law = self._law(calling_generate(sys._getframe()))
        check_settings(config, model_kwargs, stopping_criteria)
        self._constraints.end_at(config.eos_token_id)
        self._constraints.check_law(law)
        processors = target_processors(logits_processor)
        prompts = unpadded(input_ids, model_kwargs)
        if self._streamer is not None and len(prompts) > 1:
            raise StrategyError("streamer", f"{len(prompts)} prompts", "one prompt")
        limit = config.max_length - input_ids.shape[1]
        host = self._host(model, config)
        for prompt in prompts:
            host.check_length(len(prompt), limit)
        matchers = self._constraints.for_prompts(len(prompts))
        self.results = ()
        seen: Counter[tuple[int, ...]] = Counter()
        for row, (prompt, matcher) in enumerate(zip(prompts, matchers, strict=True)):
            rows: Rows = host.start([prompt])
            if processors is not None:
                rows = ProcessedRows(rows, processors, input_ids[row : row + 1].to(model.device))
            sequence = sequence_of(prompt, seen[tuple(prompt)])
            seen[tuple(prompt)] += 1
            result = self._run(rows, matcher, law, sequence, limit, input_ids[row].tolist())
            self.results = (*self.results, result)
        return self._output(input_ids, config)

    def _law(self, call: GenerationCall | None) -> Law:
        if call is None:
            accepted = "a GenerationConfig, as generate() passes it"
            raise InputError("generation_config", None, accepted)
        if call.streamer is not None:
            accepted = "smc(..., streamer=...): generate() does not hand its streamer on"
            raise StrategyError("streamer", type(call.streamer).__name__, accepted)
        return law_of(call, self._truncation)

    def _host(self, model: Any, config: Any) -> TransformersHost:
        static = None
        if config.cache_implementation == "static":
            static = StaticSize(self._particles, config.max_length)
        return TransformersHost(model, self._constraints.vocabulary, static=static)

    def _run(
        self,
        rows: Rows,
        matcher: Matcher,
        law: Law,
        sequence: int,
        max_new_tokens: int,
        shown_prompt: Sequence[int],
    ) -> SMCResult:
        stream = None
        listeners = [self._on_step] if self._on_step is not None else []
        if self._streamer is not None:
            stream = CommonPrefix(self._streamer, shown_prompt)
            listeners.append(stream.step)

        def notify(particles: Sequence[Particle]) -> None:
            for listener in listeners:
                listener(particles)

        result = run(
            rows,
            matcher,
            particles=self._particles,
            max_new_tokens=max_new_tokens,
            sampler=self._sampler,
            law=law,
            sequence=sequence,
            on_step=notify,
            **self._options,
        )
        if stream is not None:
            stream.finish(result)
        return result

    def _output(self, input_ids: Tensor, config: Any) -> Tensor | SMCOutput:
        pad = config._pad_token_tensor
        fill = self._constraints.vocabulary.eos_ids[0] if pad is None else int(pad)
        found = [(row, p) for row, result in enumerate(self.results) for p in result.particles]
        longest = max(len(particle.token_ids) for _, particle in found)
        tails = [[*p.token_ids, *[fill] * (longest - len(p.token_ids))] for _, p in found]
        rows = torch.tensor([row for row, _ in found], device=input_ids.device)
        generated = torch.tensor(tails, dtype=input_ids.dtype, device=input_ids.device)
        sequences = torch.cat([input_ids[rows], generated], dim=1)
        if not config.return_dict_in_generate:
            return sequences
        log_weights = torch.tensor([p.log_weight for _, p in found], dtype=torch.float64)
        return SMCOutput(sequences=sequences, log_weights=log_weights, results=self.results)


def smc(
    constraint: Any,
    tokenizer: Any,
    *,
    particles: int,
    seed: int = 0,
    sampler: str | Sampler = "auto",
    truncation: Literal["target", "after_mask"] | None = None,
    ess_threshold: float = 0.5,
    resampling: Resampling = "systematic",
    resample_every: int = 1,
    finished: Finished = "aside",
    potentials: Sequence[Potential] = (),
    streamer: Any = None,
    on_step: Callable[[Sequence[Particle]], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> ParticleDecoding:
    """Sequential Monte Carlo: `model.generate(**inputs, custom_generate=smc(...))`.

    The call returns the particles of each prompt, [P N, L] padded on the right, in their order;
    weights, evidence and posterior are `result` (`results` for several prompts, which run one after
    another) of what this returns, and of the output with return_dict_in_generate=True.

    The target is the model's law with the settings of `generate()`: temperature, top_k, top_p and
    min_p where do_sample=True (truncation: see `Law`), and its penalties, bad words, minimum
    lengths and user's logits processors, which must be functions of a row's ids and scores. Each
    setting is honoured or refused, see `settings.REFUSED`. cache_implementation may be "static".
    The model reads a prompt once and each distinct token of live particles once.

    constraint: one, or a list with one for each prompt; whatever `as_constraint` takes, or a
        compiled matcher.
    streamer: gets what all live particles agree on as it becomes certain, and the rest of the
        heaviest particle at the end; one prompt only.
    The others are those of `midstream.middleware.smc.run`.
    """
    if isinstance(particles, bool) or not isinstance(particles, int) or particles < 1:
        raise StrategyError("particles", particles, "an integer, at least 1")
    drawing = sampler_of(sampler)
    return ParticleDecoding(
        CompiledConstraints(constraint, tokenizer, drawing),
        particles=particles,
        sampler=drawing,
        truncation=truncation,
        streamer=streamer,
        on_step=on_step,
        options={
            "seed": seed,
            "ess_threshold": ess_threshold,
            "resampling": resampling,
            "resample_every": resample_every,
            "finished": finished,
            "potentials": potentials,
            "cancelled": cancelled,
        },
    )
