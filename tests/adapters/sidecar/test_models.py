"""The models of a server: by alias, loaded from where they are, and what they can do together."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers import MistralForCausalLM as Mistral

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.models import Models, sources_of
from midstream.adapters.sidecar.shared_rows import SharedRows
from midstream.adapters.sidecar.single_rows import SingleRows
from midstream.adapters.sidecar.wire.errors import Refusal
from midstream.middleware.errors import InputError

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 4096,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that attends to a window, with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("window")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Mistral(MistralConfig(**SMALL, sliding_window=16)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_model_path()).save_pretrained(folder)
    return folder


def test_models_by_alias(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = Models({"small": "embedded", "window": str(folder)})
    assert models.default == "small" and [*models] == []
    with caplog.at_level(logging.INFO, "midstream.sidecar"):
        models.load()
    models.load()
    first, second = models
    assert models.get("") is models.get("small") is first
    assert models.get("window") is second
    assert (first.host, second.host) == ("embedded", "transformers")
    assert (first.max_tokens, second.max_tokens) == (4096, 96)
    assert models.vocabularies() == [first.vocabulary, second.vocabulary]
    assert first.vocabulary.fingerprint == second.vocabulary.fingerprint
    assert first.encode("Hello") == second.encode("Hello")
    told = [record.midstream for record in caplog.records]  # type: ignore[attr-defined]
    assert [(each["alias"], each["shared"]) for each in told] == [
        ("small", True),
        ("window", False),
    ]


def test_what_does_not_share_passes_says_why(folder: Path) -> None:
    models = Models({"small": "embedded", "window": str(folder)})
    models.load()
    small, window = models
    assert small.alone == "" and isinstance(small.forwards(), SharedRows)
    assert "whole text" in window.alone and isinstance(window.forwards(), SingleRows)
    assert small.room.tokens == Limits().cache_bytes // (2 * 4 * 4 * 64 * 4)
    assert window.room.tokens == Limits().cache_bytes // (2 * 2 * 2 * 16 * 4)


@pytest.mark.parametrize(("processors", "before", "after"), [(1, 1, 1), (2, 2, 1), (4, 2, 2)])
def test_a_processor_is_left_to_other_threads(
    monkeypatch: pytest.MonkeyPatch, processors: int, before: int, after: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)))
    torch.set_num_threads(before)
    Models({"small": "embedded"}).load()
    assert torch.get_num_threads() == after


def test_an_unknown_alias_names_those_there_are() -> None:
    models = Models({"small": "embedded", "other": "embedded"})
    models.load()
    with pytest.raises(Refusal) as refusal:
        models.get("large\n" * 100)
    assert refusal.value.code == "NOT_FOUND"
    message = refusal.value.status.message
    assert "one of small, other" in message and len(message) < 200 and "\n" not in message


@pytest.mark.parametrize("alias", ["", "../x", "a b", "é", "a" * 65, "-a"])
def test_aliases_are_plain_words(alias: str) -> None:
    with pytest.raises(InputError, match="alias"):
        Models({alias: "embedded"})


def test_a_server_has_a_model() -> None:
    with pytest.raises(InputError, match="at least one model"):
        Models({})


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        Models({"none": str(tmp_path)}).load()


def test_a_model_without_an_end(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**{**SMALL, "eos_token_id": None})).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|nameless|>"))
    with pytest.raises(InputError, match="ends a sequence"):
        Models({"endless": str(tmp_path)}).load()


def test_models_of_a_command_line() -> None:
    assert sources_of(["embedded", "mine=/a=b"]) == {"embedded": "embedded", "mine": "/a=b"}
    for wrong in (["/folder"], ["=a"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(InputError, match="--model"):
            sources_of(wrong)
