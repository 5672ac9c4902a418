"""Exact healing as `model.generate(custom_generate=heal(tokenizer))`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from midstream.adapters.transformers.host import TransformersHost
from midstream.adapters.transformers.settings import (
    REFUSED,
    USED_MODEL_KWARGS,
    target_processors,
)
from midstream.logits_processors.constrained_sampling import ConstrainedSampling
from midstream.logits_processors.fit import CompiledConstraints
from midstream.logits_processors.generation_call import GenerationCall, calling_generate
from midstream.middleware.bytes.beam import Beam
from midstream.middleware.bytes.beyond import AnyIds, Anything, starts_at
from midstream.middleware.bytes.healing import Healed, Healer
from midstream.middleware.bytes.law import Target
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.law import Law
from midstream.middleware.matcher import Matcher
from midstream.middleware.random import Stream
from midstream.middleware.sampling import Sampler, sampler_of
from midstream.middleware.vocabulary import Vocabulary

HONOURED = frozenset({"num_return_sequences"})
"""What a particle run refuses and healed rows can do."""


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
        config, outer = generation_config, _generate_locals(frame)
        law = self._law(calling_generate(frame))
        _check(config, model_kwargs)
        processors = target_processors(logits_processor)
        self._constraints.end_at(config.eos_token_id)
        vocabulary = self._constraints.vocabulary
        prompts = _prompts(input_ids, model_kwargs)
        if self._sink is not None and len(prompts) > 1:
            raise StrategyError("sink", f"{len(prompts)} rows", "one prompt")
        limit = config.max_length - input_ids.shape[1]
        host = TransformersHost(model, vocabulary)
        for prompt in prompts:
            host.check_length(len(prompt), limit)
        matchers = self._matchers(len(prompts), config)
        healer = Healer(
            host,
            self._tokenizer,
            target=self._target,
            beam=self._beam,
            law=law,
            before=None if processors is None else _rows_of(processors, model.device),
        )
        self.healed = tuple(
            healer.heal(
                prompts,
                seed=self._seed,
                matchers=matchers,
                heal=self._switches(len(prompts), config),
            )
        )
        return self._go_on(model, config, outer, law, matchers, prompts, limit)

    def _go_on(
        self,
        model: Any,
        config: Any,
        outer: Mapping[str, Any],
        law: Law,
        matchers: Sequence[Matcher],
        prompts: Sequence[Sequence[int]],
        limit: int,
    ) -> Any:
        behind = [
            starts_at(matcher, healed.state) if healed.status == "running" else _nothing(matcher)
            for matcher, healed in zip(matchers, self.healed, strict=True)
        ]
        self.processor = ConstrainedSampling(
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
        inputs = _padded([healed.token_ids for healed in self.healed], model.device)
        self._width = inputs["input_ids"].shape[1]
        if self._sink is not None and self.healed[0].overshoot:
            self._sink(self.healed[0].overshoot)
        return model.generate(
            **inputs,
            generation_config=_config_behind(config, law, limit),
            logits_processor=LogitsProcessorList(
                [*(outer.get("logits_processor") or ()), self.processor]
            ),
            stopping_criteria=outer.get("stopping_criteria"),
            streamer=None
            if self._sink is None
            else _Bytes(self._sink, self._constraints.vocabulary),
        )

    def _matchers(self, rows: int, config: Any) -> list[Matcher]:
        """Of each row: several rows may be of one prompt."""
        expand = config.num_return_sequences or 1
        each = self._constraints.for_prompts(rows // expand)
        return [matcher for matcher in each for _ in range(expand)]

    def _switches(self, rows: int, config: Any) -> bool | list[bool]:
        if isinstance(self._heal, bool):
            return self._heal
        expand = config.num_return_sequences or 1
        wanted = [on for on in self._heal for _ in range(expand)]
        if len(wanted) != rows:
            accepted = f"True, False, or one of them for each of the {rows // expand} prompts"
            raise StrategyError("heal", list(self._heal), accepted)
        return wanted

    def _law(self, call: GenerationCall | None) -> Law:
        if call is None:
            accepted = "a GenerationConfig, as generate() passes it"
            raise InputError("generation_config", None, accepted)
        if call.streamer is not None:
            accepted = "heal(..., sink=...): it gives the bytes behind the user's alone"
            raise StrategyError("streamer", type(call.streamer).__name__, accepted)
        if not call.config.do_sample:
            return Law(temperature=0.0)
        return Law(**call.law, truncation=self._truncation)  # type: ignore[arg-type]  # top_k is an int there


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
    exactly which. Beside its own work that costs a forward of the prompt and one of short rows.

    What `generate()` returns begins with the healed prompts, padded on the left; `continuations` of
    what this returns has the bytes behind the user's, `healed` the draws, `log_weights` the
    weights. max_new_tokens counts from the healed prompt on. With do_sample=False the most probable
    token string is taken, and its most probable continuation.

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


def _generate_locals(frame: FrameType | None) -> dict[str, Any]:
    """What the user gave `generate()`, whose own additions are made again behind the prompt."""
    while frame is not None and frame.f_code.co_name != "generate":
        frame = frame.f_back
    return {} if frame is None else dict(frame.f_locals)


def _check(config: Any, model_kwargs: Mapping[str, Any]) -> None:
    """StrategyError for the first setting that healed rows cannot honour."""
    for name, (off, accepted) in REFUSED.items():
        value = getattr(config, name, None)
        if name not in HONOURED and value is not None and value != off:
            raise StrategyError(name, value, accepted)
    for name, value in model_kwargs.items():
        if name not in USED_MODEL_KWARGS and value is not None:
            accepted = "text prompts: input_ids and attention_mask"
            raise StrategyError(name, type(value).__name__, accepted)


def _prompts(input_ids: Tensor, model_kwargs: Mapping[str, Any]) -> list[list[int]]:
    mask = model_kwargs.get("attention_mask")
    rows: list[list[int]] = input_ids.tolist()
    if mask is None:
        return rows
    flags = mask[:, : input_ids.shape[1]].tolist()
    return [
        [token for token, on in zip(row, kept, strict=True) if on]
        for row, kept in zip(rows, flags, strict=True)
    ]


def _padded(prompts: Sequence[Sequence[int]], device: Any) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _config_behind(config: Any, law: Law, limit: int) -> Any:
    """The settings of the call behind the healed prompts: the law in full, one row a prompt."""
    behind = copy.deepcopy(config)
    behind.num_return_sequences = 1
    behind.max_length, behind.max_new_tokens = None, limit
    if config.do_sample:
        behind.temperature = law.temperature
        behind.top_k, behind.top_p, behind.min_p = law.top_k, law.top_p, law.min_p
    return behind


def _rows_of(processors: Any, device: Any) -> Callable[[Any, npt.NDArray[Any]], npt.NDArray[Any]]:
    """Processors as a function of the ids before each row."""

    def rows(ids: Sequence[Sequence[int]], logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
        made = []
        for before, row in zip(ids, logits, strict=True):
            scores = torch.tensor(row[None], dtype=torch.float32, device=device)
            made.append(processors(torch.tensor([list(before)], device=device), scores)[0])
        stacked: npt.NDArray[Any] = torch.stack(made).cpu().numpy()
        return stacked

    return rows


def _nothing(matcher: Matcher) -> Matcher:
    """What a row that is dead already may take: nothing."""
    return starts_at(AnyIds(matcher.vocabulary), False)
