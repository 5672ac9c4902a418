"""A language model of six tokens whose every text can be enumerated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from midstream.adapters.embedded import embedded_model_path
from midstream.middleware.constraints import Choice
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

PAD, EOS = 4, 5


def llama(size: int, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A random Llama with weights large enough for its laws to be far from uniform."""
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        initializer_range=0.15,
        **{"bos_token_id": None, "pad_token_id": PAD, "eos_token_id": EOS, **settings},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@dataclass(frozen=True)
class Small:
    """The model, its vocabulary, and the exact law of its texts."""

    model: LlamaForCausalLM
    vocabulary: Vocabulary

    def matcher(self, *texts: str) -> Matcher:
        return Choice(texts).compile(self.vocabulary)

    def log_law(self, ids: Sequence[int], temperature: float = 1.0) -> np.ndarray:
        """log p of each next token after `ids`, float64."""
        with torch.no_grad():
            logits = self.model(torch.tensor([list(ids)])).logits[0, -1]
        return torch.log_softmax(logits.double() / temperature, -1).numpy()

    def texts(
        self, prompt: Sequence[int], matcher: Matcher, temperature: float = 1.0
    ) -> dict[tuple[int, ...], tuple[float, float]]:
        """Every complete token string: its probability, and that of drawing it from masks."""
        found: dict[tuple[int, ...], tuple[float, float]] = {}

        def grow(ids: tuple[int, ...], state: Any, log_p: float, log_q: float) -> None:
            law = self.log_law([*prompt, *ids], temperature)
            allowed = np.flatnonzero(matcher.allows(state, range(len(law)))).tolist()
            log_z = float(np.logaddexp.reduce(law[allowed]))
            for token in allowed:
                p, q = log_p + law[token], log_q + law[token] - log_z
                if token == EOS:
                    found[(*ids, token)] = (float(np.exp(p)), float(np.exp(q)))
                else:
                    grow((*ids, token), matcher.advance(state, token), p, q)

        grow((), matcher.start(), 0.0, 0.0)
        return found


@pytest.fixture(scope="session")
def small() -> Small:
    letters = [b"a", b"b", b"ab", b"c", b"", b""]
    return Small(llama(6, seed=1), Vocabulary(letters, eos_ids=[EOS], special_ids=[PAD]))


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    return llama


def agrees(counts: Sequence[int], law: Sequence[float], false_alarm: float = 1e-4) -> bool:
    """Chi-square test of counts against a law; cells with an expectation below 5 are merged."""
    total = sum(counts)
    order = np.argsort(law)
    observed, expected = [0.0], [0.0]
    for i in order.tolist():
        if expected[-1] >= 5:
            observed.append(0.0)
            expected.append(0.0)
        observed[-1] += counts[i]
        expected[-1] += law[i] * total
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    return bool(statistic < scipy.stats.chi2.ppf(1 - false_alarm, len(expected) - 1))


@pytest.fixture(scope="session")
def chi_square_agrees() -> Callable[..., bool]:
    return agrees


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The embedded model's."""
    return AutoTokenizer.from_pretrained(embedded_model_path())
