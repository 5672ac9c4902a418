"""Draws and weights inside a real engine, beside transformers and the exact law."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chi2

from midstream.adapters.vllm.weights import request_id, weights
from midstream.middleware.law import Law
from midstream.middleware.random import sequence_of
from midstream.middleware.smc import run
from midstream.middleware.strategy import Strategy

CITY = "Guest 2179 picks a city:\n"
REGEX = {"constraint": {"regex": "San (Antonio|Marino)|Rome|Porto"}}
NAMES = {"constraint": {"regex": "[ A-Pa-p:][A-Za-z :]*"}}
FALSE_ALARM = 1e-4


def _reference(reference: Any, ids: list[int], strategy: dict[str, Any], child: int, **law: Any):
    asked = Strategy(**strategy, limits={"max_new_tokens": 24})
    options = {**asked.run_options(), "law": Law(**law)}
    matcher = asked.build_constraint().compile(reference.vocabulary)
    sequence = sequence_of(ids, child)
    return run(reference.start([ids]), matcher, sequence=sequence, **options).particles[0]


def test_eight_texts_without_a_seed_are_eight_streams_with_weights(
    engine: Any, generate: Any, ask: Any, reference: Any
) -> None:
    params = ask(REGEX, n=8)
    (output,) = generate([CITY], params)
    weighted = weights(engine, output, params)
    assert len(weighted) == 8
    assert len({text.token_ids for text in weighted}) > 2
    for child, text in enumerate(weighted):
        particle = _reference(reference, output.prompt_token_ids, REGEX, child)
        assert text.token_ids == particle.token_ids
        assert text.status == particle.status == "finished"
        assert text.log_weight == pytest.approx(particle.log_weight, abs=1e-4)


def test_requests_without_a_strategy_are_untouched(engine: Any, generate: Any, ask: Any) -> None:
    from vllm import SamplingParams

    prompts = [f"Guest {i} picks a city:\n" for i in range(6)]
    plain = SamplingParams(max_tokens=12, temperature=0.0)
    alone = [o.outputs[0].token_ids for o in generate(prompts, plain)]
    mixed_params = [plain if i % 2 else ask(REGEX) for i in range(6)]
    mixed = generate(prompts, mixed_params)
    for i in (1, 3, 5):
        assert mixed[i].outputs[0].token_ids == alone[i]
    cities = {"San Antonio", "San Marino", "Rome", "Porto"}
    assert {mixed[i].outputs[0].text for i in (0, 2, 4)} <= cities


def test_greedy_takes_the_most_probable_allowed_token(
    engine: Any, generate: Any, ask: Any, reference: Any
) -> None:
    params = ask(REGEX, temperature=0.0)
    (output,) = generate([CITY], params)
    ids = list(output.prompt_token_ids)
    matcher = Strategy(**REGEX).build_constraint().compile(reference.vocabulary)
    rows, state = reference.start([ids]), matcher.start()
    for token in output.outputs[0].token_ids:
        allowed = np.flatnonzero(matcher.allows(state, range(len(reference.vocabulary))))
        logits = rows.logits[0].numpy()
        assert token == allowed[logits[allowed].argmax()]
        state, rows = matcher.advance(state, token), rows.advance([0], [token])


@pytest.mark.parametrize("truncation", ["target", "after_mask"])
def test_truncation_has_the_law_it_names(
    generate: Any, ask: Any, reference: Any, truncation: str
) -> None:
    """The first token at temperature 0.7 with top_p 0.9 under a mask: chi-square."""
    strategy = {**NAMES, "law": {"truncation": truncation}}
    draws = 1500
    params = ask(strategy, n=draws, max_tokens=3, temperature=0.7, top_p=0.9)
    (output,) = generate(["Guest 31 picks a"], params)
    tokens = [text.token_ids[0] for text in output.outputs]
    law = _exact_law(reference, list(output.prompt_token_ids), truncation)
    seen = np.bincount(tokens, minlength=law.size)
    assert (law > 0).sum() >= 3
    assert not seen[law == 0].any()
    expected = law * draws
    large = expected >= 5
    cells = [*zip(seen[large], expected[large], strict=True)]
    cells.append((seen[~large].sum(), expected[~large].sum()))
    statistic = sum((o - e) ** 2 / e for o, e in cells if e > 0)
    assert statistic < chi2.isf(FALSE_ALARM, max(len(cells) - 1, 1))


def _exact_law(reference: Any, ids: list[int], truncation: str) -> np.ndarray:
    matcher = Strategy(**NAMES).build_constraint()
    compiled = matcher.compile(reference.vocabulary)
    logits = reference.start([ids]).logits[0].double().numpy()
    allowed = np.zeros(logits.size, bool)
    size = len(reference.vocabulary)
    allowed[:size] = compiled.allows(compiled.start(), range(size))
    if truncation == "target":
        kept = _nucleus(softmax(logits / 0.7)) & allowed
    else:
        kept = _nucleus(softmax(np.where(allowed, logits / 0.7, -np.inf)))
    return softmax(np.where(kept, logits / 0.7, -np.inf))


def _nucleus(p: np.ndarray) -> np.ndarray:
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    kept = np.zeros(p.size, bool)
    kept[order[before < 0.9]] = True
    return kept & (p > 0)


def test_the_evidence_is_that_of_the_exact_sum(
    engine: Any, generate: Any, ask: Any, reference: Any
) -> None:
    """Mean weight over 400 texts against the mass of the constraint, summed over tokenizations.

    Both models are float32 with other matrix kernels: 2e-4 of a mass is their noise.
    """
    strategy = {"constraint": {"choice": ["Rome", "Porto"]}}
    params = ask(strategy, n=400)
    (output,) = generate([CITY], params)
    values = np.exp([text.log_weight for text in weights(engine, output, params)])
    exact = _mass(reference, list(output.prompt_token_ids), strategy)
    error = values.std() / math.sqrt(values.size)
    assert abs(values.mean() - exact) < 4.5 * error + 2e-4 * exact


def _mass(reference: Any, ids: list[int], strategy: dict[str, Any]) -> float:
    matcher = Strategy(**strategy).build_constraint().compile(reference.vocabulary)
    size, total = len(reference.vocabulary), 0.0
    frontier = [(list(ids), matcher.start(), 1.0)]
    while frontier:
        prefix, state, p = frontier.pop()
        logits = reference.start([prefix]).logits[0].double().numpy()[:size]
        law = softmax(logits)
        for token in np.flatnonzero(matcher.allows(state, range(size))).tolist():
            if token in reference.vocabulary.eos_ids:
                total += p * law[token]
            else:
                frontier.append(([*prefix, token], matcher.advance(state, token), p * law[token]))
    return total


def test_a_constraint_that_fails_kills_its_own_request_alone(
    engine: Any, generate: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from midstream.adapters.vllm import slots

    state = slots.Slot._state

    def failing(self: Any, generated: list[int]) -> Any:
        if self.plan.strategy.seed == 13 and len(generated) == 1:
            raise RuntimeError("planted")
        return state(self, generated)

    monkeypatch.setattr(slots.Slot, "_state", failing)
    bad, good = ask({**REGEX, "seed": 13}), ask(REGEX)
    broken, fine = generate([CITY, CITY], [bad, good])
    (text,) = weights(engine, fine, good)
    assert text.status == "finished"
    (ended,) = weights(engine, broken, bad)
    assert ended.status == "dead"
    assert "planted" in ended.reason
    assert ended.log_weight == -math.inf


def test_what_is_no_strategy_is_refused_before_the_engine(generate: Any, ask: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    for params, name in [
        (ask({"constraint": {"regex": "("}}), "midstream.strategy.constraint"),
        (ask({"sampler": "best"}), "midstream.strategy.sampler"),
        (ask(REGEX, min_tokens=3), "min_tokens"),
        (ask(REGEX, presence_penalty=1.0), "presence_penalty"),
    ]:
        with pytest.raises(VLLMValidationError, match=name):
            generate([CITY], params)


def test_a_vocabulary_of_another_model_is_told(engine: Any, generate: Any, ask: Any) -> None:
    params = ask(REGEX, vocabulary="0" * 64)
    (output,) = generate([CITY], params)
    (text,) = weights(engine, output, params)
    assert text.status == "dead"
    assert "midstream.vocabulary" in text.reason


def test_ids_are_written_back_and_no_two_requests_share_one(
    engine: Any, generate: Any, ask: Any
) -> None:
    from vllm.exceptions import VLLMValidationError

    params = ask(REGEX)
    generate([CITY], params)
    assert len(request_id(params)) == 32
    generate([CITY], ask(REGEX, id="an-id-of-one-request"))
    with pytest.raises(VLLMValidationError, match=r"midstream\.id"):
        generate([CITY], ask(REGEX, id="an-id-of-one-request"))


def test_stop_strings_and_limits_cut_the_weight_to_what_is_there(
    engine: Any, generate: Any, ask: Any
) -> None:
    digits = {"constraint": {"regex": "[0-9]{20}"}}
    cut = ask(digits, max_tokens=23)
    params = ask({"constraint": {"regex": "San (Antonio|Marino)"}}, stop=["San"])
    stopped, limited = generate([CITY, CITY], [params, cut])
    (text,) = weights(engine, stopped, params)
    assert text.status == "cancelled"
    assert math.isfinite(text.log_weight)
    (whole,) = weights(engine, limited, cut)
    assert whole.status in ("finished", "length")


def test_every_row_is_forced(generate: Any, ask: Any, engine: Any) -> None:
    """Logprobs of the drawn token stay the model's own under raw_logprobs."""
    params = ask(REGEX, logprobs=0)
    (output,) = generate([CITY], params)
    for token, entry in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
        assert -60 < entry[token].logprob < 0
