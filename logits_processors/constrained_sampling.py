"""The logits processor: constrained tokens with their log weights, inside `model.generate()`."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from midstream.kernels.backend import BACKENDS, Backend, choose
from midstream.logits_processors.beams import MaskedBeams
from midstream.logits_processors.fit import CompiledConstraints, check_row_size
from midstream.logits_processors.generation_call import (
    GenerationCall,
    calling_config,
    calling_generate,
)
from midstream.logits_processors.generation_law import law_in_force
from midstream.logits_processors.rows import Row, SampledRows
from midstream.middleware.budget import within_budget
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.host import logits_on_host
from midstream.middleware.law import Law
from midstream.middleware.random import Stream
from midstream.middleware.sampling import Sampler, sampler_of

if TYPE_CHECKING:
    from torch import Tensor, device


class UncheckedLawWarning(UserWarning):
    """No `generate()` was found around a processor, whose settings it would have compared."""


class ConstrainedSampling:
    """A transformers LogitsProcessor that draws the tokens and keeps what the constraint cost.

    Each row gets the token that `sampler` draws, forced: 0 for it, -inf for all others, so that
    nothing which comes after changes the draw. With w = exp(log_weights[b]) and p the law of a
    whole text under the model, its temperature and truncation and the processors before this one,
    E[w 1{text = x}] = p(x) for every complete text x of the constraint that ends within the limit.

    constraint: one, or a list with one for each prompt; whatever `as_constraint` takes, or a
        compiled matcher.
    tokenizer: the model's, or a Vocabulary. With a tokenizer the end-of-sequence ids are those of
        generation_config.
    sampler: "auto", "mask", "awrs", or a sampler.
    seed: with a row's prompt and its how-manieth occurrence it fixes the row's tokens.
    prompts: for each prompt the ids that stand for it in the random numbers, where the call has not
        all of them (healing cuts a prompt). None: those of the call, without padding.
    backend: where rows are drawn whose sampler is `mask`. "auto": by the kernels where the logits
        are, if that is a GPU, else by numpy; "numpy", "triton": as said. The tokens are the same,
        weights within 2e-6. All other rows, float64 ones and beams are drawn on the host.
    temperature, top_k, top_p, min_p, truncation: the law, see `Law`. Settings of `generate()` that
        differ raise StrategyError at the first token. generate(do_sample=False), its default,
        decodes greedily: the most probable allowed token, whose weight is not proper (NaN with
        "awrs").

    Results, of the latest call of `generate()` and in the order of its rows: log_weights float64
    [B]; status, reasons and checks [B]; and `law`, the one in force. A row that finds nothing
    allowed, or NaN, is `dead` with weight -inf and ends at once. `length` is a row cut off by
    max_length: its weight is that of its prefix. Where a matcher knows `tokens_to_finish`, no row
    starts what it cannot finish. Under beam search rows are only masked, and weights are NaN.

    On a GPU a step brings its tokens, weights and states to the host in one copy, at the next step
    or when results are read, and waits for the device nowhere else. So a matcher whose `advance`
    fails is noticed one token later than on the host: that token stands in the output.

    One object serves one call of `generate()` at a time; each call starts anew. Raises
    VocabularyError where the rows of the model do not fit the vocabulary, ConstraintError where
    nothing can end within the limit.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        constraint: Any,
        tokenizer: Any,
        *,
        sampler: str | Sampler = "auto",
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        truncation: Literal["target", "after_mask"] | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
        backend: Backend = "auto",
    ) -> None:
        if backend not in BACKENDS:
            raise StrategyError("backend", backend, ", ".join(map(repr, BACKENDS)))
        self._law = Law(temperature, top_k, top_p, min_p, truncation)
        self._sampler = sampler_of(sampler)
        self._seed = Stream(seed).seed
        self._backend: Backend = backend
        self._prompts = prompts
        self._constraints = CompiledConstraints(constraint, tokenizer, self._sampler)
        self._constraints.check_law(self._law)
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Forget the last call, as the next one does by itself. Outlines calls this before each."""
        self._rows: SampledRows | MaskedBeams | None = None
        self._config: Any = None
        self._prompt_length = 0
        self._last_ids: Tensor | None = None
        self.law = self._law

    @property
    def log_weights(self) -> npt.NDArray[np.float64]:
        """Log weight of each row, nats: float64 [B]. NaN for beams and for greedy rejection."""
        if isinstance(self._rows, MaskedBeams):
            return np.full(len(self._rows.status), np.nan)
        return np.array([row.log_weight for row in self._settled()], np.float64)

    @property
    def status(self) -> list[str]:
        """How each row stands: running, finished, length, dead or exhausted."""
        if isinstance(self._rows, MaskedBeams):
            return list(self._rows.status)
        return [row.status for row in self._settled()]

    @property
    def reasons(self) -> list[str]:
        """Why a row is dead or exhausted; empty for the others."""
        if isinstance(self._rows, MaskedBeams):
            return [""] * len(self._rows.status)
        return [row.reason for row in self._settled()]

    @property
    def checks(self) -> list[int]:
        """Tokens that each row's matcher checked one by one."""
        if isinstance(self._rows, MaskedBeams):
            return [0] * len(self._rows.status)
        return [row.checks for row in self._settled()]

    def _settled(self) -> Sequence[Row]:
        """The sampled rows as they are after the last step, wherever it drew."""
        if not isinstance(self._rows, SampledRows):
            return ()
        self._rows.settle()
        return self._rows.rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] that leave each row one token, or under beams the allowed ones."""
        frame = sys._getframe(1)
        rows = self._rows
        if rows is None or not self._goes_on(calling_config(frame), input_ids):
            rows = self._begin(frame, input_ids, scores)
        position = input_ids.shape[1] - self._prompt_length
        self._last_ids = input_ids
        if isinstance(rows, MaskedBeams):
            generated = input_ids[:, self._prompt_length :].tolist()
            return scores.new_tensor(rows.step(logits_on_host(scores), generated))
        tokens = rows.step(scores, position)
        return scores.new_full(scores.shape, -math.inf).scatter_(1, tokens[:, None], 0.0)

    def _goes_on(self, config: Any, input_ids: Tensor) -> bool:
        """Whether this is the next step of the same call, which has a config object of its own."""
        last = self._last_ids
        assert last is not None
        if config is not self._config or input_ids.shape != (last.shape[0], last.shape[1] + 1):
            return False
        if isinstance(self._rows, MaskedBeams):
            return True
        assert self._rows is not None
        same = self._rows.goes_on(input_ids, last)
        if not same and config is not None:
            accepted = "a loop that appends each row's forced token and keeps the rows in place"
            got = "rows that do not continue those of the last step"
            raise StrategyError("input_ids", got, accepted)
        return same

    def _begin(
        self, frame: FrameType, input_ids: Tensor, scores: Tensor
    ) -> SampledRows | MaskedBeams:
        """Set up a call of `generate()`; what does not fit raises here, before the first token."""
        self.reset()
        call = calling_generate(frame)
        self._check_call(call)
        if call is not None:
            self._constraints.end_at(call.config.eos_token_id)
        check_row_size(self._constraints.vocabulary, scores.shape[1])
        expand = call.expand if call is not None else 1
        matchers = self._constraints.for_prompts(input_ids.shape[0] // expand)
        limit = _limit(call, input_ids.shape[1])
        if limit is not None:
            matchers = [within_budget(matcher, limit) for matcher in matchers]
        each = [matcher for matcher in matchers for _ in range(expand)]
        self._config = call.config if call is not None else None
        self._prompt_length = input_ids.shape[1]
        if call is not None and call.beams:
            self._rows = MaskedBeams(each, call.config.num_beams)
        else:
            self._rows = SampledRows(
                each,
                self._prompts_of(input_ids, call, expand),
                sampler=self._sampler,
                law=self.law,
                seed=self._seed,
                max_new_tokens=limit,
                device=_device_of_draws(scores, self._backend),
            )
        return self._rows

    def _prompts_of(
        self, input_ids: Tensor, call: GenerationCall | None, expand: int
    ) -> list[list[int]]:
        """The ids that each row's random numbers go by."""
        if self._prompts is None:
            return _prompts(input_ids, call)
        if len(self._prompts) * expand != len(input_ids):
            got = f"{len(self._prompts)} prompts for {len(input_ids) // expand}"
            raise InputError("prompts", got, "None, or ids for each prompt of the call")
        return [list(ids) for ids in self._prompts for _ in range(expand)]

    def _check_call(self, call: GenerationCall | None) -> None:
        if call is None:
            if not self._warned:
                self._warned = True
                message = (
                    "no generation_config was found in the calling frames: tokens are drawn from "
                    f"ConstrainedSampling's own {self._law}, whatever the caller applies besides"
                )
                warnings.warn(message, UncheckedLawWarning, stacklevel=4)
            return
        if call.loop == "_assisted_decoding":
            accepted = "generate() without drafts: a token that is drawn here cannot be taken back"
            raise StrategyError("assistant_model", "assisted decoding", accepted)
        self.law = law_in_force(self._law, call, self)


def _device_of_draws(scores: Tensor, backend: Backend) -> device | None:
    """Where the kernels draw; None for the host, which draws from float64 rows in any case."""
    reads = scores.dtype.itemsize <= 4 and choose(scores, backend) == "triton"
    return scores.device if reads else None


def _limit(call: GenerationCall | None, prompt_length: int) -> int | None:
    """How many tokens `generate()` will make at the most."""
    if call is None or call.config.max_length is None:
        return None
    return int(call.config.max_length) - prompt_length


def _prompts(input_ids: Tensor, call: GenerationCall | None) -> list[list[int]]:
    """Each row's prompt without its padding, which is what the model does not attend to."""
    given = call.model_kwargs if call is not None else {}
    # With an encoder, `attention_mask` is that of its input.
    mask = given.get("decoder_attention_mask" if "encoder_outputs" in given else "attention_mask")
    if mask is None or mask.ndim != 2 or mask.shape[0] != len(input_ids):
        rows: list[list[int]] = input_ids.tolist()
        return rows
    # Kept apart by their sign: one copy to the host holds the ids and what is attended to.
    kept = input_ids.where(mask[:, : input_ids.shape[1]] != 0, -1)
    return [[token for token in row if token >= 0] for row in kept.tolist()]
