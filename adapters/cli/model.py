"""A model and its tokenizer for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from midstream.adapters.model_sources import model_folder
from midstream.adapters.transformers import TransformersHost
from midstream.middleware.errors import InputError


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model as a host, and its tokenizer."""

    host: TransformersHost
    tokenizer: Any

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt, as the tokenizer begins a text."""
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        return ids


def load_model(source: str) -> LoadedModel:
    """The model of a `model_folder`: in float32 on a CPU, as it was saved where there is a GPU.

    Raises InputError where there is none, and VocabularyError for a tokenizer of another model.
    """
    folder = model_folder(source)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    on_gpu = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        dtype = "auto" if on_gpu else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except Exception as fault:  # transformers raises what its parts raise
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        accepted = "a folder with a causal language model and its tokenizer"
        raise InputError("model", f"{source} ({reason})", accepted) from fault
    model = model.to("cuda").eval() if on_gpu else model.eval()
    return LoadedModel(TransformersHost(model, tokenizer), tokenizer)
