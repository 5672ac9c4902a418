"""The zoo's language models: shape, tokenizer, and what each one reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from corpus import GENERAL_LATE_MIX, GENERAL_MIX, SECOND_LATE_MIX, SECOND_MIX
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and diet of one model; every head has dimension 64."""

    tokenizer: str
    mix: Mapping[str, float]
    late_mix: Mapping[str, float]
    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_value_heads: int


SPECS: Mapping[str, Spec] = {
    "general": Spec("byte_level", GENERAL_MIX, GENERAL_LATE_MIX, 256, 640, 4, 4, 4),
    "draft": Spec("byte_level", GENERAL_MIX, GENERAL_LATE_MIX, 128, 320, 2, 2, 2),
    "second": Spec("sentencepiece", SECOND_MIX, SECOND_LATE_MIX, 256, 640, 3, 4, 2),
}


def load_tokenizer(folder: Path) -> tuple[Tokenizer, int, int]:
    """The tokenizer, its end-of-sequence id and its padding id."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocab = tokenizer.get_vocab()
    return tokenizer, vocab[config["eos_token"]], vocab[config["pad_token"]]


def build_model(spec: Spec, tokenizer: Tokenizer, eos: int, pad: int) -> LlamaForCausalLM:
    """A Llama with fresh weights, from torch's current seed."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=spec.hidden,
        intermediate_size=spec.feed_forward,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.key_value_heads,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=eos,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def save_model(model: LlamaForCausalLM, tokenizer_folder: Path, output: Path) -> None:
    """A folder that AutoModelForCausalLM and AutoTokenizer load: bf16 safetensors, no pickles."""
    output.mkdir(parents=True, exist_ok=True)
    copy: Any = LlamaForCausalLM(model.config)  # type: ignore[no-untyped-call]
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)
    copy.config.dtype = torch.bfloat16
    copy.config.use_cache = True
    copy.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    copy.save_pretrained(output)
    for name in _TOKENIZER_FILES:
        (output / name).write_bytes((tokenizer_folder / name).read_bytes())
