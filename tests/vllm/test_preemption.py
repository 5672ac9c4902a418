"""Preemption and prompts in chunks: the same tokens and weights, none lost or counted twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from midstream.adapters.vllm.weights import weights

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60, "minLength": 40},
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 8},
            "minItems": 4,
            "maxItems": 6,
        },
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def crowded(make_engine: Callable[..., Any]) -> Any:
    """An engine with so few blocks that requests must give way to each other."""
    return make_engine(num_gpu_blocks_override=12, enable_prefix_caching=False, max_model_len=320)


def _preemptions(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Notes every request that the scheduler puts back."""
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    seen: list[Any] = []
    preempt = scheduler._preempt_request

    def noting(request: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(request.request_id)
        return preempt(request, *arguments, **named)

    monkeypatch.setattr(scheduler, "_preempt_request", noting)
    return seen


def test_weights_survive_preemption(
    engine: Any, crowded: Any, generate: Any, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    preempted = _preemptions(crowded, monkeypatch)
    prompts = [f"A record about guest {i}:\n" for i in range(6)]
    strategy = {"constraint": {"json_schema": RECORD}}
    answers = {}
    for name, on in (("roomy", engine), ("crowded", crowded)):
        params = [ask(strategy, max_tokens=120) for _ in prompts]
        outputs = generate(prompts, params, on)
        answers[name] = [
            weights(on, output, each)[0] for output, each in zip(outputs, params, strict=True)
        ]
    assert preempted
    for roomy, other in zip(answers["roomy"], answers["crowded"], strict=True):
        assert other.token_ids == roomy.token_ids
        assert other.status == roomy.status
        assert other.log_weight == pytest.approx(roomy.log_weight, abs=1e-3)


def test_prompts_that_are_read_in_chunks(
    engine: Any, make_engine: Callable[..., Any], generate: Any, ask: Any
) -> None:
    """A row that belongs to half a prompt is drawn too, thrown away, and drawn again."""
    chunked = make_engine(
        max_num_batched_tokens=64, enable_chunked_prefill=True, enable_prefix_caching=False
    )
    prompts = [f"Guest {i} was here. " * 25 + "Guest 7 picks a city:\n" for i in range(4)]
    strategy = {"constraint": {"regex": "San (Antonio|Marino)|Rome|Porto"}}
    answers = []
    for on in (engine, chunked):
        params = [ask(strategy) for _ in prompts]
        outputs = generate(prompts, params, on)
        assert all(len(output.prompt_token_ids) > 64 for output in outputs)
        answers.append([weights(on, o, p)[0] for o, p in zip(outputs, params, strict=True)])
    for whole, parts in zip(*answers, strict=True):
        assert parts.token_ids == whole.token_ids
        assert parts.log_weight == pytest.approx(whole.log_weight, abs=1e-3)
