"""Small language models of ordinary training, for measurements."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

ROWS, TOKENS = 12, 96
"""Of each step: texts, and tokens of each."""


def byte_level_bpe(texts: list[str], size: int, special_tokens: list[str]) -> Tokenizer:
    """A byte-level BPE with GPT-2's rule for words; its special tokens have the first ids."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def train_llama(
    example: Callable[[random.Random], list[int]], *, vocab_size: int, positions: int, steps: int
) -> Any:
    """A Llama of 227,000 parameters at 1,000 tokens; its beginning and end of sequence are id 0.

    example: draws a row of `TOKENS` ids. Seeds are fixed: the same examples give the same model.
    """
    torch.manual_seed(0)
    draw = random.Random(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    llama: Any = LlamaForCausalLM
    model = llama(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.tensor([example(draw) for _ in range(ROWS)])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model
