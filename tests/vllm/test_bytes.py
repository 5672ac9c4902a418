"""Byte laws and exact healing by ordinary requests to a real engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from midstream.adapters.vllm import VllmHost
from midstream.middleware.bytes import ByteModel
from midstream.middleware.bytes.healing import Healer
from midstream.middleware.errors import InputError

PREFIXES = [b"ISO date of 20", b"ISO date of 2001, Apr", b"Take 2", b'{"na', b"def retu", b"a\n\n"]


@pytest.fixture(scope="session")
def shown(make_engine: Callable[..., Any]) -> VllmHost:
    """An engine that shows the probabilities of all tokens."""
    return VllmHost(make_engine(max_logprobs=-1))


@pytest.mark.parametrize("target", ["canonical", "all"])
def test_byte_laws_are_those_of_transformers(
    shown: VllmHost, reference: Any, tokenizer: Any, target: Any
) -> None:
    reference.tokenizer = tokenizer
    here, there = ByteModel(shown, target=target), ByteModel(reference, target=target)
    assert here.target == there.target == target
    ours = [law.p for law in here.laws(PREFIXES)]
    for prefix, law, expected in zip(PREFIXES, ours, there.laws(PREFIXES), strict=True):
        assert np.abs(law - expected.p).max() < 2e-5, prefix
        assert law.sum() == pytest.approx(1.0)
    # The test sees a difference: the law after another prefix is another.
    assert np.abs(ours[0] - ours[1]).max() > 1e-2


def test_covers_are_those_of_transformers(shown: VllmHost, reference: Any, tokenizer: Any) -> None:
    reference.tokenizer = tokenizer
    for prefix in PREFIXES:
        ours = dict(ByteModel(shown).cover(prefix))
        expected = dict(ByteModel(reference).cover(prefix))
        assert ours.keys() == expected.keys()
        assert all(abs(ours[ids] - log_p) < 1e-3 for ids, log_p in expected.items())


def test_an_engine_that_hides_probabilities_is_told(engine: Any) -> None:
    with pytest.raises(InputError, match="max_logprobs=-1"):
        ByteModel(VllmHost(engine)).next_byte(b"ISO date")


PROMPTS = ["ISO date of 2001, Apr", "Take 2", "Guest 2179 picks a ci", '{"name": "Jo', "    retu"]


def test_healing_draws_the_token_strings_of_transformers(
    shown: VllmHost, reference: Any, tokenizer: Any
) -> None:
    """The same seeds, so the same elements; and the engine goes on from their ids."""
    prompts = [tokenizer(text).input_ids for text in PROMPTS] * 8
    ours = Healer(shown, tokenizer).heal(prompts, seed=3)
    theirs = Healer(reference, tokenizer).heal(prompts, seed=3)
    # An inverse CDF may flip where the two models' noise crosses a boundary.
    same = sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True))
    assert same >= len(prompts) - 1
    for prompt, healed, other in zip(prompts, ours, theirs, strict=True):
        spelled = shown.vocabulary.decode(healed.token_ids)
        assert spelled == shown.vocabulary.decode(prompt) + healed.overshoot
        assert healed.log_cover == pytest.approx(other.log_cover, abs=1e-4)
    assert any(healed.overshoot for healed in ours)
    assert any(tuple(prompt) != h.token_ids for prompt, h in zip(prompts, ours, strict=True))
