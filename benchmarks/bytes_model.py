"""A small language model of ordinary training, for measurements over bytes.

Llama of 227,000 parameters, byte-level BPE of 1,000 tokens with GPT-2's rule for words, trained for
a minute or two on the sources of Python's standard library; 20 of its files are held out.
"""

from __future__ import annotations

import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

SIZE = 1000
STEPS = 400
ROWS, TOKENS = 12, 96
HELD_OUT = 20
FOLDER = Path(__file__).resolve().parents[1] / "build" / "bytes-model"


@dataclass(frozen=True, slots=True)
class Trained:
    """A model, its tokenizer, and texts that it has not read."""

    model: Any
    tokenizer: Any
    held_out: list[str]


def sources() -> tuple[list[str], list[str]]:
    """Files in ASCII of the standard library: held out ones, and the others."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = sorted(p for p in library.glob("*.py") if p.is_file())
    random.Random(0).shuffle(found)
    texts = [t for p in found if (t := p.read_text("utf-8", "replace")).isascii() and len(t) > 2000]
    return texts[:HELD_OUT], texts[HELD_OUT:]


def trained() -> Trained:
    """The model, from the folder of an earlier run or trained now."""
    held_out, texts = sources()
    if not (FOLDER / "model.safetensors").exists():
        tokenizer = _tokenizer(texts, SIZE)
        _train(tokenizer, texts).save_pretrained(FOLDER)
        tokenizer.save_pretrained(FOLDER)
    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return Trained(model, AutoTokenizer.from_pretrained(FOLDER), held_out)


def wide_tokenizer(size: int) -> Any:
    """A byte-level BPE of so many tokens, of the same sources."""
    held_out, texts = sources()
    return _tokenizer(held_out + texts, size)


def _tokenizer(texts: list[str], size: int) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = FastTokenizer
    # The peer begins a text with the tokenizer's BOS.
    return fast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>")


def _train(tokenizer: Any, texts: list[str]) -> Any:
    torch.manual_seed(0)
    draw = random.Random(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    llama: Any = LlamaForCausalLM
    model = llama(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    lines = [text.splitlines(keepends=True) for text in texts]
    for _ in range(STEPS):
        batch = torch.tensor([_chunk(draw, lines, tokenizer) for _ in range(ROWS)])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def _chunk(draw: random.Random, files: list[list[str]], tokenizer: Any) -> list[int]:
    """The beginning of a text, and lines until a row is full."""
    ids: list[int] = []
    while len(ids) < TOKENS:
        lines = draw.choice(files)
        begin = draw.randrange(max(len(lines) - 5, 1))
        text = "".join(lines[begin : begin + draw.randint(5, 40)])
        ids += [0, *tokenizer.encode(text, add_special_tokens=False)]
    return ids[:TOKENS]
