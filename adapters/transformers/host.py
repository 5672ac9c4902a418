"""A transformers causal language model as a host: every token is read once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, StaticCache

from midstream.adapters.transformers.tree import TransformersTree, reads_trees
from midstream.logits_processors.fit import check_row_size
from midstream.middleware.bytes.tree import RowsTree, Tree
from midstream.middleware.end_of_sequence import end_of_sequence_ids
from midstream.middleware.errors import InputError
from midstream.middleware.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StaticSize:
    """The fixed shape of a StaticCache: sequences side by side, and tokens of each, prompt too."""

    rows: int
    tokens: int

    def __post_init__(self) -> None:
        for name, value in (("rows", self.rows), ("tokens", self.tokens)):
            if value < 1:
                raise InputError(name, value, "an integer, at least 1")


class TransformersHost:
    """A causal language model of transformers, as a `Host`.

    model: a PreTrainedModel with a decoder only. tokenizer: the model's, or a Vocabulary. End of
        sequence is what `end_of_sequence_ids(tokenizer, model.config, model.generation_config)`
        says, unless a Vocabulary is given.
    static: the size of a StaticCache to use in the place of a DynamicCache. The batch then stays
        `static.rows` rows, the spare ones of which compute nothing that is used, and a row's logits
        are the same bits in any company.
    tokenizer: None where a Vocabulary was given. row_size: the ids of a row of logits.
    forwarded_tokens: how many tokens the model has read, padding and spare rows among them. One
        prompt of L tokens and G advanced rows make L + G.
    Raises VocabularyError where the model's row of logits does not fit the tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any, *, static: StaticSize | None = None) -> None:
        if model.config.is_encoder_decoder:
            raise InputError("model", type(model).__name__, "a model with a decoder only")
        self.model = model
        self.tokenizer = None if isinstance(tokenizer, Vocabulary) else tokenizer
        self.static = static
        self.forwarded_tokens = 0
        text_config = model.config.get_text_config(decoder=True)
        self.context_length: int | None = getattr(text_config, "max_position_embeddings", None)
        if isinstance(tokenizer, Vocabulary):
            self._vocabulary = tokenizer
        else:
            eos_ids = end_of_sequence_ids(tokenizer, model.config, model.generation_config)
            self._vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=eos_ids)
        self.row_size = int(text_config.vocab_size)
        check_row_size(self._vocabulary, self.row_size)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""
        return self._vocabulary

    def check_length(self, prompt_length: int, max_new_tokens: int = 0) -> None:
        """InputError where a prompt and what is to follow it are longer than the model takes."""
        limits = [self.context_length, self.static.tokens if self.static is not None else None]
        limit = min((each for each in limits if each is not None), default=None)
        if limit is None or prompt_length + max_new_tokens <= limit:
            return
        if prompt_length > limit:
            raise InputError(
                "prompt", f"{prompt_length} tokens", f"at most {limit}, all that the model takes"
            )
        got = f"{max_new_tokens} after a prompt of {prompt_length} tokens"
        accepted = f"at most {limit - prompt_length}: the model takes {limit} tokens"
        raise InputError("max_new_tokens", got, accepted)

    def start(self, prompts: Sequence[Sequence[int]]) -> TransformersRows:
        """Prompts to read, one row each; of unequal length they are padded on the left.

        The model reads them at the first look at the logits, so that what else is wrong with a
        request is found before. Raises InputError for an empty prompt, one longer than the model
        takes, and ids that are not the model's.
        """
        self._check_prompts(prompts)
        width = max(len(prompt) for prompt in prompts)
        pads = [width - len(prompt) for prompt in prompts]
        rows = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
        device = self.model.device
        mask = None
        if any(pads):
            flags = [[0] * pad + [1] * (width - pad) for pad in pads]
            mask = torch.tensor(flags, dtype=torch.long, device=device)
        input_ids = torch.tensor(rows, dtype=torch.long, device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        positions = torch.arange(width, device=device) - (width - lengths)[:, None]
        cache = self._cache()

        def read() -> Tensor:
            return self.forward(input_ids, mask, positions.clamp(min=0), cache, first=True)

        return TransformersRows(self, read, cache, mask, lengths)

    def tree(self, prompts: Sequence[Sequence[int]]) -> tuple[Tree, Tensor]:
        """A tree of tokens behind each prompt, and the logits behind the prompts [R, V].

        Every token is read once where the model takes a mask of ancestors (attention "eager" or
        "sdpa" over all positions, a DynamicCache); elsewhere whole token strings are read again.
        Raises InputError as `start` does.
        """
        return self.tree_behind(self.start(prompts), prompts)

    def tree_behind(
        self, rows: TransformersRows, prompts: Sequence[Sequence[int]]
    ) -> tuple[Tree, Tensor]:
        """The same behind prompts that were started, whose rows are consumed."""
        logits = rows.logits
        if not reads_trees(self):
            return RowsTree(self, prompts), logits
        return TransformersTree(self, rows.read_cache(), list(map(len, prompts))), logits

    def _check_prompts(self, prompts: Sequence[Sequence[int]]) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise InputError(
                "prompts", f"{len(prompts)} prompts", "prompts of at least one token each"
            )
        if self.static is not None and len(prompts) > self.static.rows:
            raise InputError(
                "prompts",
                f"{len(prompts)} prompts",
                f"at most {self.static.rows}, the rows of `static`",
            )
        for prompt in prompts:
            self.check_length(len(prompt))
            if not 0 <= min(prompt) <= max(prompt) < self.row_size:
                raise InputError(
                    "prompts",
                    f"ids {min(prompt)} to {max(prompt)}",
                    f"ids from 0 to {self.row_size - 1}",
                )

    def _cache(self) -> Any:
        config = self.model.config.get_text_config(decoder=True)
        if self.static is None:
            return DynamicCache(config=config)
        return StaticCache(config=config, max_cache_len=self.static.tokens)

    def forward(
        self,
        input_ids: Tensor,  # [R, T]
        mask: Tensor | None,  # [R, L], None where nothing is padded
        positions: Tensor,  # [R, T]
        cache: Any,
        *,
        first: bool = False,
    ) -> Tensor:
        """One forward pass: the logits of the last position [R, V], at least float32."""
        model = self.model
        self.forwarded_tokens += input_ids.numel()
        with torch.no_grad():
            keep = {"logits_to_keep": 1} if self._keeps_logits else {}
            inputs = model.prepare_inputs_for_generation(
                input_ids,
                past_key_values=cache,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                is_first_iteration=first,
                **keep,
            )
            logits: Tensor = model(**inputs, return_dict=True).logits[:, -1]
        return logits if logits.dtype.itemsize >= 4 else logits.float()


class TransformersRows:
    """Live sequences of a model, as `Rows`: their logits, and the cache that goes on with them."""

    def __init__(
        self,
        host: TransformersHost,
        read: Callable[[], Tensor],  # the logits [R, V]; called once
        cache: Any,
        mask: Tensor | None,  # [rows of the cache, tokens so far]
        lengths: Tensor,  # [rows of the cache], tokens of each without padding
    ) -> None:
        self._host = host
        self._read: Callable[[], Tensor] | None = read
        self._logits: Tensor | None = None
        self._cache = cache
        self._mask = mask
        self._lengths = lengths

    @property
    def logits(self) -> Tensor:
        """The next-token logits [R, V] of each sequence, at least float32, on the device."""
        if self._logits is None:
            assert self._read is not None
            self._logits, self._read = self._read(), None
        return self._logits

    def read_cache(self) -> Any:
        """The cache, once the model has read what it is of."""
        _ = self.logits
        return self._cache

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> TransformersRows:
        """Row i of the result continues row parents[i] with tokens[i]: one forward row each.

        Raises InputError for a row that does not exist, more rows than a StaticCache has, and rows
        that have been advanced already.
        """
        host, cache = self._host, self._cache
        self._check(parents, tokens)
        self._cache = None
        count = len(parents)
        spare = host.static.rows - count if host.static is not None else 0
        index = [*parents, *[0] * spare]
        device = self._lengths.device
        input_ids = torch.tensor([*tokens, *[0] * spare], dtype=torch.long, device=device)[:, None]
        mask, lengths = self._mask, self._lengths
        if index != list(range(lengths.shape[0])):
            order = torch.tensor(index, dtype=torch.long, device=device)
            cache.reorder_cache(order)
            lengths = lengths[order]
            mask = mask[order] if mask is not None else None
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        logits = host.forward(input_ids, mask, lengths[:, None], cache)
        return TransformersRows(host, lambda: logits[:count], cache, mask, lengths + 1)

    def _check(self, parents: Sequence[int], tokens: Sequence[int]) -> None:
        if self._cache is None:
            raise InputError(
                "rows", "rows that were advanced already", "the rows that `advance` returned last"
            )
        if not parents or len(parents) != len(tokens):
            got = f"{len(parents)} parents and {len(tokens)} tokens"
            raise InputError("parents", got, "as many parents as tokens, at least one")
        rows = self.logits.shape[0]
        if not 0 <= min(parents) <= max(parents) < rows:
            raise InputError("parents", list(parents), f"rows from 0 to {rows - 1}")
        static = self._host.static
        if static is not None and len(parents) > static.rows:
            raise InputError(
                "parents", f"{len(parents)} rows", f"at most {static.rows}, the rows of `static`"
            )
