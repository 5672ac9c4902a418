"""A real small language model: the same tokens in any company, on every way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TextStreamer

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.transformers import smc
from midstream.kernels.row import BLOCK
from midstream.logits_processors import ConstrainedSampling
from midstream.middleware.constraints import JsonSchema, Regex
from midstream.middleware.random import Stream, sequence_of
from midstream.middleware.vocabulary import Vocabulary

TASKS = Path(__file__).resolve().parents[2] / "zoo" / "tasks"
PATTERN = Regex(r"[A-Z][a-z]{1,8}( [a-z]{1,8}){2,4}\.")
MAX_NEW_TOKENS = 24


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    found = []
    for task in ("arithmetic", "date", "json", "lookup", "sql"):
        with (TASKS / f"{task}.jsonl").open() as lines:
            found += [json.loads(next(lines))["prompt"] for _ in range(3)]
    assert len(set(found)) == 15
    return found


@dataclass
class Recorder:
    """Keeps the scores of each step."""

    scores: list[np.ndarray]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores.append(scores.double().numpy())
        return scores


@dataclass(frozen=True)
class Drawn:
    """One prompt's tokens, and the scores that each was drawn from."""

    tokens: list[int]
    scores: list[np.ndarray]


def draw(
    model: Any, tokenizer: Any, prompts: list[str], matcher: Any, seed: int = 1
) -> dict[str, Drawn]:
    """One batch of prompts, padded on the left."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    recorder = Recorder([])
    processor = ConstrainedSampling(matcher, tokenizer, seed=seed, temperature=1.3, sampler="mask")
    out = model.generate(
        **inputs,
        do_sample=True,
        max_new_tokens=MAX_NEW_TOKENS,
        logits_processor=[recorder, processor],
    )
    assert processor.status == ["finished"] * len(prompts)
    rows = out[:, inputs["input_ids"].shape[1] :].tolist()
    found = {}
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ended = row.index(tokenizer.eos_token_id) + 1
        found[prompt] = Drawn(row[:ended], [step[i] for step in recorder.scores[:ended]])
    return found


def levels(row: np.ndarray, allowed: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The cumulative law of the blocks, and of the tokens inside one."""
    logits = np.where(allowed, row / 1.3, -np.inf)
    law = np.exp(logits - np.logaddexp.reduce(logits))
    inside = law[block * BLOCK : (block + 1) * BLOCK]
    blocks = law.reshape(-1, BLOCK).sum(axis=1)
    return np.cumsum(blocks), np.cumsum(inside / inside.sum())


def explained(one: Drawn, other: Drawn, matcher: Any, sequence: int) -> bool:
    """Whether the first difference is a uniform nearer to a boundary than the noise is wide."""
    state, at = matcher.start(), 0
    while one.tokens[at] == other.tokens[at]:
        state = matcher.advance(state, one.tokens[at])
        at += 1
    first, second = one.scores[at], other.scores[at]
    assert abs(first - second).max() < 1e-3
    allowed = matcher.allows(state, range(first.size))
    uniforms = Stream(1, sequence, at).uniforms("token", 2)
    block, its = one.tokens[at] // BLOCK, other.tokens[at] // BLOCK
    level = 0 if block != its else 1
    ours, theirs = (levels(row, allowed, block)[level] for row in (first, second))
    noise = abs(ours - theirs).max()
    return bool(abs(ours - uniforms[level]).min() <= noise)


def test_the_same_tokens_in_any_company(model: Any, tokenizer: Any, prompts: list[str]) -> None:
    matcher = PATTERN.compile(Vocabulary.from_tokenizer(tokenizer))
    batches = [prompts, prompts[::-1], prompts[3:5], *([prompt] for prompt in prompts)]
    runs = [draw(model, tokenizer, batch, matcher) for batch in batches]
    differing = 0
    for prompt in prompts:
        seen = [run[prompt] for run in runs if prompt in run]
        assert len(seen) >= 3
        for other in seen[1:]:
            if other.tokens != seen[0].tokens:
                differing += 1
                sequence = sequence_of(tokenizer(prompt)["input_ids"])
                assert explained(seen[0], other, matcher, sequence)
    assert differing <= 1  # an inverse CDF flips about one token in 1e4


def test_another_seed_is_not_explained_by_noise(
    model: Any, tokenizer: Any, prompts: list[str]
) -> None:
    """Negative control."""
    matcher = PATTERN.compile(Vocabulary.from_tokenizer(tokenizer))
    prompt = prompts[0]
    one, other = (draw(model, tokenizer, [prompt], matcher, seed=seed)[prompt] for seed in (1, 2))
    assert one.tokens != other.tokens
    assert not explained(one, other, matcher, sequence_of(tokenizer(prompt)["input_ids"]))


def test_a_streamed_json_record(model: Any, tokenizer: Any, capsys: Any) -> None:
    schema = {
        "type": "object",
        "properties": {
            "gate": {"type": "integer", "maximum": 99},
            "end": {"enum": ["Parma", "Rome"]},
        },
        "required": ["gate", "end"],
        "additionalProperties": False,
    }
    prompt = "JSON with gate, end: The flight to Parma leaves Milan from gate 17 with 2 seats.\n"
    inputs = tokenizer(prompt, return_tensors="pt")
    run = smc(
        JsonSchema(schema),
        tokenizer,
        particles=8,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    out = model.generate(**inputs, custom_generate=run, max_new_tokens=32)
    assert run.result.status == "finished" and out.shape[0] == 8
    texts = run.result.posterior()
    assert abs(sum(texts.values()) - 1) < 1e-9 and all(json.loads(text) for text in texts)
    assert json.loads(next(iter(texts))) == {"gate": 17, "end": "Parma"}
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_particles_with_both_caches_in_both_precisions(
    tokenizer: Any, dtype: torch.dtype, cache: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=dtype)
    inputs = tokenizer("Take 26 from 28\n", return_tensors="pt")
    run = smc(Regex(r"-?(0|[1-9]\d{0,3})"), tokenizer, particles=6)
    model.generate(**inputs, custom_generate=run, max_new_tokens=8, cache_implementation=cache)
    assert all(particle.status == "finished" for particle in run.result.particles)
    assert -20 < run.result.log_evidence < 0
