"""The language model that ships with midstream: a Llama of about 4 M parameters, 4,096 tokens."""

from __future__ import annotations

from pathlib import Path


def embedded_model_path() -> Path:
    """The folder of the embedded model, as AutoModelForCausalLM and AutoTokenizer load it.

    It holds config.json, generation_config.json, model.safetensors (bf16), tokenizer.json and
    tokenizer_config.json. How it was made and what it can do: docs/findings/zoo.md.
    """
    return Path(__file__).resolve().parent / "model"
