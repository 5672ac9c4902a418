"""The law of what `generate()` returns with ConstrainedSampling, against enumeration."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from midstream.logits_processors import ConstrainedSampling
from midstream.middleware.random import Stream, sequence_of
from midstream.middleware.sampling import AWRS, Mask

PROMPT = [1, 3, 0]
TEXTS = ("ab", "abc", "ca", "b", "cab", "ccab", "aab")
EOS = 5
ROWS = 3000
Z_BOUND = 5.0  # false alarm 6e-7 for each text


def sample(small: Any, seed: int = 0, prompt: list[int] = PROMPT, **options: Any) -> Any:
    """ROWS texts of one prompt with their processor."""
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary, seed=seed, **options)
    out = small.model.generate(
        torch.tensor([prompt]),
        do_sample=True,
        max_new_tokens=8,
        num_return_sequences=ROWS,
        logits_processor=[processor],
    )
    texts = []
    for row in out[:, len(prompt) :].tolist():
        texts.append(tuple(row[: row.index(EOS) + 1]))
    return texts, processor


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "mask"},
        {"sampler": "awrs"},
        {"sampler": AWRS(estimator="recursive")},
        {"sampler": AWRS(accepts=2, rejects=4)},
        {"sampler": "auto", "temperature": 0.6},
        {"sampler": "awrs", "temperature": 1.7},
    ],
    ids=str,
)
def test_weights_are_proper_and_tokens_follow_the_law(
    small: Any, chi_square_agrees: Any, options: dict[str, Any]
) -> None:
    exact = small.texts(PROMPT, small.matcher(*TEXTS), options.get("temperature", 1.0))
    texts, processor = sample(small, **options)
    weights = np.exp(processor.log_weights)
    drawn = np.array([status == "finished" for status in processor.status])
    if getattr(options["sampler"], "rejects", None) is None:
        assert drawn.all()
        counts = Counter(texts)
        assert chi_square_agrees([counts[x] for x in exact], [q for _, q in exact.values()])
    assert set(t for t, done in zip(texts, drawn, strict=True) if done) <= set(exact)
    for text, (p, q) in exact.items():
        values = np.where([t == text for t in texts], weights, 0.0) * drawn
        error = max(values.std(), p * np.sqrt(1 / q - 1))  # the latter is the mask's, exactly
        assert abs(values.mean() - p) <= Z_BOUND * error / np.sqrt(ROWS)
    total = sum(p for p, _ in exact.values())
    assert abs(weights.mean() - total) <= Z_BOUND * weights.std() / np.sqrt(ROWS)


def test_the_checks_fail_for_a_silent_temperature_of_one(
    small: Any, chi_square_agrees: Any
) -> None:
    """Negative control: draws at 1.0 where 0.6 was asked for."""
    exact = small.texts(PROMPT, small.matcher(*TEXTS), 0.6)
    texts, processor = sample(small, sampler="mask", temperature=1.0)
    counts = Counter(texts)
    assert not chi_square_agrees([counts[x] for x in exact], [q for _, q in exact.values()])
    weights = np.exp(processor.log_weights)
    worst = 0.0
    for text, (p, _) in exact.items():
        values = np.where([t == text for t in texts], weights, 0.0)
        worst = max(worst, abs(values.mean() - p) / (values.std() / np.sqrt(ROWS) + 1e-300))
    assert worst > Z_BOUND


def test_the_checks_fail_for_weights_of_one(small: Any) -> None:
    """Negative control: plain masked decoding, without its weights, is not the conditional law."""
    exact = small.texts(PROMPT, small.matcher(*TEXTS))
    texts, _ = sample(small, sampler="mask")
    counts = Counter(texts)
    total = sum(p for p, _ in exact.values())
    z = [
        abs(counts[x] / ROWS - p / total) / np.sqrt(p / total * (1 - p / total) / ROWS)
        for x, (p, _) in exact.items()
    ]
    assert max(z) > Z_BOUND


class Recorder:
    """A processor that keeps the scores it sees."""

    def __init__(self) -> None:
        self.scores: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores.append(scores.clone())
        return scores


@pytest.mark.parametrize("sampler", [Mask(), AWRS(), AWRS(estimator="recursive")], ids=str)
def test_tokens_and_weights_are_those_of_the_sampler_on_the_same_logits(
    small: Any, sampler: Any
) -> None:
    matcher = small.matcher(*TEXTS)
    prompts = [PROMPT, [0, 0, 2], PROMPT]
    recorder = Recorder()
    processor = ConstrainedSampling(
        matcher, small.vocabulary, sampler=sampler, seed=7, temperature=0.8
    )
    out = small.model.generate(
        torch.tensor(prompts),
        do_sample=True,
        max_new_tokens=8,
        logits_processor=[recorder, processor],
    )
    sequences = [sequence_of(PROMPT), sequence_of([0, 0, 2]), sequence_of(PROMPT, 1)]
    for row, sequence in enumerate(sequences):
        state, log_weight = matcher.start(), 0.0
        for position, scores in enumerate(recorder.scores):
            stream = Stream(7, sequence, position)
            draw = sampler.draw(scores[row].numpy(), matcher, state, stream, law=processor.law)
            assert draw.token == out[row, 3 + position]
            log_weight += draw.log_weight
            if draw.status == "finished":
                break
            state = matcher.advance(state, draw.token)
        assert log_weight == processor.log_weights[row]


def test_a_forced_token_survives_whatever_comes_after(small: Any) -> None:
    """The library's own top_k = 50 and a normalisation act on one token that has all the mass."""
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary)
    out = small.model.generate(
        torch.tensor([PROMPT]),
        do_sample=True,
        max_new_tokens=8,
        renormalize_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        logits_processor=[processor],
    )
    for position, scores in enumerate(out.scores):
        finite = torch.isfinite(scores[0]).nonzero().flatten().tolist()
        assert finite == [out.sequences[0, 3 + position]]
