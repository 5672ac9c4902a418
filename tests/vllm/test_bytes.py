"""Byte laws and exact healing by ordinary requests to a real engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from midstream.adapters.vllm import VllmHost, VllmServerHost
from midstream.adapters.vllm.weights import weights
from midstream.middleware.bytes import ByteModel
from midstream.middleware.bytes.healing import Healer
from midstream.middleware.constraints import Regex
from midstream.middleware.errors import InputError, StrategyError

PREFIXES = [b"ISO date of 20", b"ISO date of 2001, Apr", b"Take 2", b'{"na', b"def retu", b"a\n\n"]


@pytest.fixture(scope="session")
def open_engine(make_engine: Callable[..., Any]) -> Any:
    """An engine that shows the probabilities of all tokens."""
    return make_engine(max_logprobs=-1)


@pytest.fixture(scope="session")
def shown(open_engine: Any) -> VllmHost:
    return VllmHost(open_engine)


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


def test_byte_laws_over_http(server: Any, reference: Any, tokenizer: Any) -> None:
    reference.tokenizer = tokenizer
    there = ByteModel(reference).laws(PREFIXES)
    with VllmServerHost(server.url, tokenizer, api_key=server.key) as host:
        ours = ByteModel(host).laws(PREFIXES)
        (healed,) = Healer(host, tokenizer).heal([tokenizer("Take 2").input_ids], seed=5)
        with pytest.raises(StrategyError, match="length") as caught:
            _ = host.start([[*range(10, 20)] * 60]).logits
    assert "--max-logprobs" not in str(caught.value)
    for law, expected in zip(ours, there, strict=True):
        assert np.abs(law.p - expected.p).max() < 2e-5
    (expected_healed,) = Healer(reference, tokenizer).heal([tokenizer("Take 2").input_ids], seed=5)
    assert healed.token_ids == expected_healed.token_ids


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


def test_a_healed_prompt_goes_on_under_its_constraint(
    open_engine: Any,
    shown: VllmHost,
    tokenizer: Any,
    generate: Callable[..., Any],
    ask: Callable[..., Any],
) -> None:
    """What the last token of the prompt writes over its end is the first of the answer."""
    pattern = "n (Antonio|Marino|Francisco)"
    prompt = tokenizer("Guest 2179 picks a city:\nSa").input_ids
    matcher = Regex(pattern).compile(shown.vocabulary)
    found = Healer(shown, tokenizer).heal([prompt] * 6, seed=1, matchers=[matcher] * 6)
    assert any(healed.overshoot for healed in found)
    params = [
        ask({"constraint": {"regex": pattern}, "seed": i}, begun=healed.overshoot.hex())
        for i, healed in enumerate(found)
    ]
    texts = [{"prompt_token_ids": list(healed.token_ids)} for healed in found]
    answers = generate(texts, params, on=open_engine)
    for healed, answer, asked in zip(found, answers, params, strict=True):
        spelled = shown.vocabulary.decode(answer.outputs[0].token_ids)
        assert re.fullmatch(pattern, (healed.overshoot + spelled).decode())
        (weighted,) = weights(open_engine, answer, asked)
        assert weighted.status == "finished" and weighted.log_weight <= 1e-9


def test_begun_bytes_that_no_text_begins_with_end_the_request(
    open_engine: Any, tokenizer: Any, generate: Callable[..., Any], ask: Callable[..., Any]
) -> None:
    params = ask({"constraint": {"regex": "n (Antonio|Marino)"}}, begun=b"x".hex())
    prompt = {"prompt_token_ids": tokenizer("Guest 2179 picks a city:\nSa").input_ids}
    (answer,) = generate([prompt], [params], on=open_engine)
    (weighted,) = weights(open_engine, answer, params)
    assert weighted.status == "dead" and "midstream.begun" in weighted.reason
