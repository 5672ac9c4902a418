"""Exact healing as `model.generate(custom_generate=heal(tokenizer))`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList
from transformers.utils.generic import ModelOutput

from midstream.adapters.transformers.healing_settings import (
    check_healed,
    config_behind,
    generate_locals,
    law_behind,
    own_cache,
    rows_of,
    switches,
)
from midstream.adapters.transformers.host import TransformersHost
from midstream.adapters.transformers.prompts import padded, unpadded
from midstream.adapters.transformers.settings import target_processors
from midstream.adapters.transformers.trunk import TrunkHost
from midstream.logits_processors.constrained_sampling import ConstrainedSampling
from midstream.logits_processors.fit import CompiledConstraints
from midstream.logits_processors.generation_call import calling_generate
from midstream.middleware.bytes.beam import Beam
from midstream.middleware.bytes.beyond import AnyIds, Anything, starts_at
from midstream.middleware.bytes.healing import Healed, Healer
from midstream.middleware.bytes.law import Target
from midstream.middleware.errors import StrategyError
from midstream.middleware.law import Law
from midstream.middleware.matcher import Matcher
from midstream.middleware.random import Stream
from midstream.middleware.sampling import Sampler, sampler_of
from midstream.middleware.vocabulary import Vocabulary


@dataclass
class HealedOutput(ModelOutput):
    """What `generate(return_dict_in_generate=True)` returns.

    sequences: int64 [B, L], healed prompts and what follows them, padded on the left.
    log_weights: float64 [B]. continuations, healed: see `HealedDecoding`.
    """

    sequences: Tensor | None = None
    log_weights: Tensor | None = None
    continuations: tuple[bytes, ...] | None = None
    healed: tuple[Healed, ...] | None = None


class HealedDecoding:
    """What `heal` returns; `generate()` calls it. See there.

    healed: of the latest call, for each row. processor: which drew the tokens behind them.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        constraint: Any,
        target: Target,
        beam: Beam | None,
        seed: int,
        sampler: Sampler,
        truncation: Literal["target", "after_mask"] | None,
        heal: bool | Sequence[bool],
        sink: Callable[[bytes], None] | None,
    ) -> None:
        self._tokenizer = tokenizer
        wanted = Anything() if constraint is None else constraint
        self._constraints = CompiledConstraints(wanted, tokenizer, sampler)
        self._target: Target = target
        self._beam = beam
        self._seed = Stream(seed).seed
        self._sampler = sampler
        self._truncation = truncation
        self._heal = heal
        self._sink = sink
        self.healed: tuple[Healed, ...] = ()
        self.processor: ConstrainedSampling | None = None
        self._width = 0

    @property
    def log_weights(self) -> npt.NDArray[np.float64]:
        """Of each row, float64 [B]: what the constraint cost, 0 without one.

        With w = exp of it, E[w 1{text = x}] = p(x) for each text x that satisfies the constraint; p
        the law given that the text begins with the prompt's bytes, in a token string that begins
        with an element of their cover. `healed.log_cover` is log of the probability of that.
        """
        log_weights = np.array([healed.log_weight for healed in self.healed], np.float64)
        return log_weights if self.processor is None else log_weights + self.processor.log_weights

    def continuations(self, sequences: Tensor) -> list[bytes]:
        """Of what `generate()` returned: the bytes of each row behind the user's prompt."""
        found = []
        vocabulary = self._constraints.vocabulary
        for healed, row in zip(self.healed, sequences[:, self._width :].tolist(), strict=True):
            ends = [i for i, token in enumerate(row) if token in vocabulary.eos_ids]
            tokens = row[: ends[0]] if ends else row
            found.append(healed.overshoot + vocabulary.decode(tokens))
        return found

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,  # [B, L], padded on the left
        logits_processor: Any = (),
        stopping_criteria: Any = (),
        generation_config: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Heal the prompts together, then go on by `generate()`."""
        frame = sys._getframe()
        config, outer = generation_config, generate_locals(frame)
        law = law_behind(calling_generate(frame), self._truncation)
        check_healed(config, model_kwargs)
        processors = target_processors(logits_processor)
        self._constraints.end_at(config.eos_token_id)
        vocabulary = self._constraints.vocabulary
        prompts = unpadded(input_ids, model_kwargs)
        if self._sink is not None and len(prompts) > 1:
            raise StrategyError("sink", f"{len(prompts)} rows", "one prompt")
        limit = config.max_length - input_ids.shape[1]
        host = TransformersHost(model, vocabulary)
        for prompt in prompts:
            host.check_length(len(prompt), limit)
        matchers = self._matchers(len(prompts), config)
        cache = self._draw(host, law, processors, matchers, prompts, config)
        return self._go_on(model, config, outer, law, matchers, prompts, limit, cache)

    def _draw(
        self,
        host: TransformersHost,
        law: Law,
        processors: Any,
        matchers: Sequence[Matcher],
        prompts: Sequence[Sequence[int]],
        config: Any,
    ) -> DynamicCache | None:
        """Draw the ends of the prompts. Returns what was read of them, for the call behind."""
        trunk = TrunkHost(host)
        healer = Healer(
            trunk,
            self._tokenizer,
            target=self._target,
            beam=self._beam,
            law=law,
            before=None if processors is None else rows_of(processors, host.model.device),
        )
        on = switches(self._heal, len(prompts), config)
        found = healer.heal(prompts, seed=self._seed, matchers=matchers, heal=on)
        self.healed = tuple(found)
        return None if own_cache(config) else trunk.take_cache(self.healed)

    def _go_on(
        self,
        model: Any,
        config: Any,
        outer: Mapping[str, Any],
        law: Law,
        matchers: Sequence[Matcher],
        prompts: Sequence[Sequence[int]],
        limit: int,
        cache: DynamicCache | None,
    ) -> Any:
        self.processor = self._processor(law, config, matchers, prompts)
        inputs: dict[str, Any] = padded([healed.token_ids for healed in self.healed], model.device)
        self._width = inputs["input_ids"].shape[1]
        if cache is not None:
            inputs["past_key_values"] = cache
        if self._sink is not None and self.healed[0].overshoot:
            self._sink(self.healed[0].overshoot)
        output = model.generate(
            **inputs,
            generation_config=config_behind(config, law, limit),
            logits_processor=LogitsProcessorList(
                [*(outer.get("logits_processor") or ()), self.processor]
            ),
            stopping_criteria=outer.get("stopping_criteria"),
            streamer=None
            if self._sink is None
            else _Bytes(self._sink, self._constraints.vocabulary),
        )
        return self._output(output.sequences) if config.return_dict_in_generate else output

    def _output(self, sequences: Tensor) -> HealedOutput:
        return HealedOutput(
            sequences=sequences,
            log_weights=torch.from_numpy(self.log_weights),
            continuations=tuple(self.continuations(sequences)),
            healed=self.healed,
        )

    def _processor(
        self,
        law: Law,
        config: Any,
        matchers: Sequence[Matcher],
        prompts: Sequence[Sequence[int]],
    ) -> ConstrainedSampling:
        """Draws behind the healed prompts."""
        nothing = starts_at(AnyIds(self._constraints.vocabulary), False)  # behind what is dead
        behind = [
            starts_at(matcher, healed.state) if healed.status == "running" else nothing
            for matcher, healed in zip(matchers, self.healed, strict=True)
        ]
        return ConstrainedSampling(
            behind,
            self._constraints.vocabulary,
            sampler=self._sampler,
            seed=self._seed,
            temperature=law.temperature if config.do_sample else 1.0,
            top_k=law.top_k,
            top_p=law.top_p,
            min_p=law.min_p,
            truncation=law.truncation,
            prompts=prompts,
        )

    def _matchers(self, rows: int, config: Any) -> list[Matcher]:
        """Of each row: several rows may be of one prompt."""
        expand = config.num_return_sequences or 1
        each = self._constraints.for_prompts(rows // expand)
        return [matcher for matcher in each for _ in range(expand)]


def heal(
    tokenizer: Any,
    *,
    constraint: Any = None,
    target: Target = "canonical",
    beam: Beam | None = None,
    seed: int = 0,
    sampler: str | Sampler = "auto",
    truncation: Literal["target", "after_mask"] | None = None,
    heal: bool | Sequence[bool] = True,
    sink: Callable[[bytes], None] | None = None,
) -> HealedDecoding:
    """Prompts that may end inside a token: `model.generate(**inputs, custom_generate=heal(...))`.

    The end of each prompt is read as bytes, one of its token strings is drawn with its exact
    probability under the settings of `generate()` (temperature, top_k, top_p, min_p, penalties and
    other processors that are functions of a row's ids and scores), and `generate()` goes on behind
    it, with tokens that `ConstrainedSampling` draws. So what follows has the model's law of texts,
    given that the text begins with the prompt's bytes: `midstream.middleware.bytes.healing` says
    exactly which. Beside its own work that costs a forward of short rows; and one of the prompt
    where its cache does not simply grow, but slides, is static, or is not of keys and values.

    What `generate()` returns begins with the healed prompts, padded on the left; `continuations` of
    what this returns has the bytes behind the user's, `healed` the draws, `log_weights` the
    weights; with return_dict_in_generate=True a `HealedOutput` has all of it. max_new_tokens counts
    from the healed prompt on. With do_sample=False the most probable token string is taken, and its
    most probable continuation.

    constraint: of the bytes behind the prompt; one, or a list with one for each prompt.
    target, beam: see `Healer`. truncation: see `Law`. heal: whether to, for all or each prompt.
    sink: called with the bytes behind the user's as they come, one prompt only. They may end inside
        a character.
    """
    return HealedDecoding(
        tokenizer,
        constraint=constraint,
        target=target,
        beam=beam,
        seed=seed,
        sampler=sampler_of(sampler),
        truncation=truncation,
        heal=heal,
        sink=sink,
    )


class _Bytes:
    """A streamer that hands on the bytes of tokens behind the prompt."""

    def __init__(self, sink: Callable[[bytes], None], vocabulary: Vocabulary) -> None:
        self._sink = sink
        self._vocabulary = vocabulary
        self._prompt = True

    def put(self, value: Tensor) -> None:
        if not self._prompt:
            fresh = self._vocabulary.decode(value.reshape(-1).tolist())
            if fresh:
                self._sink(fresh)
        self._prompt = False

    def end(self) -> None:
        """Nothing is held back."""
