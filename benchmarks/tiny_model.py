"""A random Llama that costs next to nothing, so that what is left of a run is the sampler's."""

from __future__ import annotations

import functools
import pydoc_data.topics
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROMPT = "The date and the words follow:"


def make_tokenizer(size: int) -> Any:  # a PreTrainedTokenizerFast
    """A byte-level BPE of `size` tokens, trained on the help texts that come with Python."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(pydoc_data.topics.topics.values()), trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, eos_token="<eos>")


def make_model(size: int, *, eos_id: int) -> Any:  # a LlamaForCausalLM
    """Hidden size 64, two layers, float32, random weights from a fixed seed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=None,
    )
    llama: Any = LlamaForCausalLM
    return llama(config).eval()


class ForwardTimer:
    """Adds up the time that a model spends in its forward pass."""

    def __init__(self, model: Any, now: Callable[[], float]) -> None:
        self.seconds = 0.0
        self.calls = 0
        forward = model.forward

        @functools.wraps(forward)
        def timed(*arguments: Any, **options: Any) -> Any:
            begin = now()
            result = forward(*arguments, **options)
            self.seconds += now() - begin
            self.calls += 1
            return result

        model.forward = timed
