"""A language model of six tokens whose every text can be enumerated, and the embedded tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from midstream.adapters.embedded import embedded_model_path
from midstream.middleware.constraints import Choice
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

PAD, EOS = 4, 5


def llama(size: int, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A random Llama with weights large enough for its laws to be far from uniform."""
    given: dict[str, Any] = {
        "bos_token_id": None,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "max_position_embeddings": 128,
        **settings,
    }
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.15,
        **given,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


Law = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Small:
    """The model and its vocabulary."""

    model: LlamaForCausalLM
    vocabulary: Vocabulary

    def matcher(self, *texts: str) -> Matcher:
        return Choice(texts).compile(self.vocabulary)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Next-token logits after `ids`, by one whole forward pass."""
        with torch.no_grad():
            return self.model(torch.tensor([list(ids)])).logits[0, -1].double().numpy()

    def texts(
        self, prompt: Sequence[int], matcher: Matcher, logits: Law | None = None
    ) -> dict[tuple[int, ...], float]:
        """Every complete token string with its probability. logits: another law, by all ids."""
        found: dict[tuple[int, ...], float] = {}

        def grow(ids: tuple[int, ...], state: Any, log_p: float) -> None:
            row = (logits or self.logits)([*prompt, *ids])
            law = row - np.logaddexp.reduce(row)
            for token in np.flatnonzero(matcher.allows(state, range(len(law)))).tolist():
                if token == EOS:
                    found[(*ids, token)] = float(np.exp(log_p + law[token]))
                else:
                    grow((*ids, token), matcher.advance(state, token), log_p + law[token])

        grow((), matcher.start(), 0.0)
        return found


@pytest.fixture(scope="session")
def small() -> Small:
    letters = [b"a", b"b", b"ab", b"c", b"", b""]
    return Small(llama(6, seed=1), Vocabulary(letters, eos_ids=[EOS], special_ids=[PAD]))


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    return llama


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The embedded model's."""
    return AutoTokenizer.from_pretrained(embedded_model_path())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
