"""A small untrained model on disk, and the command line called in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from midstream.adapters.cli.app import run
from midstream.adapters.embedded import embedded_model_path

CONTEXT = 512


@dataclass(frozen=True)
class Called:
    """What a command line gave."""

    code: int
    out: str
    err: str

    def refused(self) -> str:
        """The one line on stderr of a call that ends with exit code 2 and prints nothing."""
        assert self.code == 2, (self.out, self.err)
        assert self.out == ""
        line, _, rest = self.err.partition("\n")
        assert rest == ""
        assert line.startswith("midstream: error: ")
        return line.removeprefix("midstream: error: ")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama with the embedded model's tokenizer and a context of 512 tokens."""
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=4096,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=CONTEXT,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_model_path() / name, folder / name)
    return folder


@pytest.fixture
def midstream(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """Calls the command line with arguments."""

    def call(*arguments: object) -> Called:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Called(code, out, err)

    return call
