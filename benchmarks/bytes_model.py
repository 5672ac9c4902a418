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
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import PreTrainedTokenizerFast as FastTokenizer

from benchmarks.training import TOKENS, byte_level_bpe, train_llama

SIZE = 1000
STEPS = 400
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
    tokenizer = byte_level_bpe(texts, size, ["<eos>"])
    fast: Any = FastTokenizer
    # The peer begins a text with the tokenizer's BOS.
    return fast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", pad_token="<eos>")


def _train(tokenizer: Any, texts: list[str]) -> Any:
    lines = [text.splitlines(keepends=True) for text in texts]
    return train_llama(
        lambda draw: _chunk(draw, lines, tokenizer),
        vocab_size=len(tokenizer),
        positions=2048,
        steps=STEPS,
    )


def _chunk(draw: random.Random, files: list[list[str]], tokenizer: Any) -> list[int]:
    """The beginning of a text, and lines until a row is full."""
    ids: list[int] = []
    while len(ids) < TOKENS:
        lines = draw.choice(files)
        begin = draw.randrange(max(len(lines) - 5, 1))
        text = "".join(lines[begin : begin + draw.randint(5, 40)])
        ids += [0, *tokenizer.encode(text, add_special_tokens=False)]
    return ids[:TOKENS]
