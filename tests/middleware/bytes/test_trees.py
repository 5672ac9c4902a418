"""Trees of tokens against prompts read one by one, for several architectures and attentions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from midstream.adapters.transformers import StaticSize, TransformersHost
from midstream.middleware.bytes.tree import RowsTree, TreeHost, grow
from midstream.middleware.errors import InputError
from midstream.middleware.vocabulary import Vocabulary

SIZE = 64
TOKENS = Vocabulary([b"", *(bytes([64 + i]) for i in range(SIZE - 1))], eos_ids=[0])
IDS = {"vocab_size": SIZE, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SHAPE = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def made(kind: str, config: str, **options: Any) -> Any:
    torch.manual_seed(0)
    settings = getattr(transformers, config)(**options)
    return getattr(transformers, kind)(settings).eval()


def llama(**options: Any) -> Any:
    return made("LlamaForCausalLM", "LlamaConfig", **SHAPE, **options)


READ_AS_TREES: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama, eager": lambda: llama(attn_implementation="eager"),
    "gpt2": lambda: made("GPT2LMHeadModel", "GPT2Config", **IDS, n_embd=32, n_layer=2, n_head=2),
    "opt": lambda: made(
        "OPTForCausalLM",
        "OPTConfig",
        **IDS,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=32,
    ),
    "qwen2": lambda: made("Qwen2ForCausalLM", "Qwen2Config", **SHAPE, num_key_value_heads=1),
}
READ_AGAIN: dict[str, Callable[[], Any]] = {
    "sliding window": lambda: made(
        "MistralForCausalLM", "MistralConfig", **SHAPE, num_key_value_heads=1, sliding_window=4
    ),
    "alibi": lambda: made(
        "BloomForCausalLM", "BloomConfig", **IDS, hidden_size=32, n_layer=2, n_head=2
    ),
}


def grown_at_random(host: TransformersHost, *, steps: int) -> tuple[Any, list[int], int]:
    """Extend a tree, forget some of it, and compare each row with that of the whole string."""
    rng = np.random.default_rng(0)
    prompts = [(1,), (1, 5, 9), (7, 7, 7, 7)]
    tree, logits = grow(host, prompts)
    strings, kept = list(prompts), [0, 1, 2]

    def alone(string: tuple[int, ...]) -> np.ndarray:
        return np.asarray(host.start([string]).logits.numpy()[0])

    for string, row in zip(strings, logits, strict=True):
        np.testing.assert_allclose(row, alone(string), rtol=1e-4, atol=1e-5)
    for step in range(steps):
        count, first = int(rng.integers(1, 6)), len(strings)
        parents: list[int] = []
        for i in range(count):
            parents.append(int(rng.choice([*kept, *range(first, first + i)])))
        tokens = rng.integers(1, SIZE, count).tolist()
        told = tree.extend(parents, tokens)
        for parent, token, row in zip(parents, tokens, told, strict=True):
            strings.append((*strings[parent], token))
            np.testing.assert_allclose(row.numpy(), alone(strings[-1]), rtol=1e-4, atol=1e-5)
        kept += range(first, len(strings))
        if step % 3 == 2:
            kept = sorted(rng.choice(kept, size=max(2, len(kept) // 3), replace=False).tolist())
            tree.keep(kept)
    return tree, kept, len(strings)


@pytest.mark.parametrize("name", READ_AS_TREES)
def test_each_token_is_read_once_and_says_what_the_whole_string_says(name: str) -> None:
    host = TransformersHost(READ_AS_TREES[name](), TOKENS)
    assert isinstance(host, TreeHost)
    tree, kept, count = grown_at_random(host, steps=12)
    assert type(tree).__name__ == "TransformersTree"
    assert tree._columns < count  # what was forgotten has left the cache
    forgotten = next(node for node in range(count) if node not in kept)
    with pytest.raises(InputError, match="parents"):
        tree.extend([forgotten], [5])
    with pytest.raises(InputError, match="tokens"):
        tree.extend([kept[-1]], [SIZE])


@pytest.mark.parametrize("name", [*READ_AGAIN, "static"])
def test_models_without_such_masks_read_again(name: str) -> None:
    if name == "static":
        host = TransformersHost(llama(), TOKENS, static=StaticSize(rows=5, tokens=32))
    else:
        host = TransformersHost(READ_AGAIN[name](), TOKENS)
    tree, kept, count = grown_at_random(host, steps=4)
    assert isinstance(tree, RowsTree)
    forgotten = next(node for node in range(count) if node not in kept)
    with pytest.raises(InputError, match="parents"):
        tree.extend([forgotten], [5])
