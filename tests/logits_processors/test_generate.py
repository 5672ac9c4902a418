"""ConstrainedSampling under the ways that `generate()` can be called."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

from midstream.logits_processors import ConstrainedSampling, UncheckedLawWarning
from midstream.middleware.end_of_sequence import VocabularyWarning
from midstream.middleware.errors import (
    ConstraintError,
    InputError,
    StrategyError,
    VocabularyError,
)
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

PAD, EOS = 4, 5
TEXTS = ("ab", "abc", "ca", "b", "cab", "ccab", "aab")
PROMPTS = [[1, 3, 0], [2], [0, 0]]


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """A batch padded on the left."""
    width = max(map(len, prompts))
    ids = [[PAD] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def generated(out: torch.Tensor, width: int) -> list[tuple[int, ...]]:
    """The new tokens of each row, up to its end."""
    rows = out[:, width:].tolist()
    return [tuple(row[: row.index(EOS) + 1] if EOS in row else row) for row in rows]


def spelled(small: Any, ids: tuple[int, ...]) -> str:
    return small.vocabulary.decode(ids).decode()


@dataclass(frozen=True)
class NoMask:
    """A matcher that can only be checked token by token."""

    inner: Matcher
    has_mask: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_greedy_takes_the_most_probable_allowed_token(small: Any, sampler: str) -> None:
    matcher = small.matcher(*TEXTS)
    processor = ConstrainedSampling(matcher, small.vocabulary, sampler=sampler)
    batch = padded(PROMPTS)
    out = small.model.generate(**batch, max_new_tokens=8, logits_processor=[processor])
    for prompt, ids, weight in zip(PROMPTS, generated(out, 3), processor.log_weights, strict=True):
        state, expected = matcher.start(), 0.0
        for position, token in enumerate(ids):
            law = small.log_law([*prompt, *ids[:position]])
            allowed = np.flatnonzero(matcher.allows(state, range(6)))
            assert token == allowed[law[allowed].argmax()]
            expected += np.logaddexp.reduce(law[allowed])
            state = matcher.advance(state, token)
        assert np.isnan(weight) if sampler == "awrs" else abs(weight - expected) < 1e-4
    assert processor.status == ["finished"] * 3
    assert processor.law.temperature == 0.0 and not processor.law.proper


def test_do_sample_false_never_samples(small: Any) -> None:
    """Whatever the seed, greedy decoding is one text; a temperature beside it is a conflict."""
    matcher = small.matcher(*TEXTS)
    prompt = torch.tensor([PROMPTS[0]])
    outs = {
        tuple(
            small.model.generate(
                prompt,
                max_new_tokens=8,
                logits_processor=[ConstrainedSampling(matcher, small.vocabulary, seed=seed)],
            )[0].tolist()
        )
        for seed in range(20)
    }
    assert len(outs) == 1
    processor = ConstrainedSampling(matcher, small.vocabulary, temperature=0.7)
    with pytest.raises(StrategyError, match="do_sample=True to sample"):
        small.model.generate(prompt, max_new_tokens=8, logits_processor=[processor])


def test_num_return_sequences_draw_apart(small: Any) -> None:
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary, temperature=2.0)
    options = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 20}
    ids = torch.tensor(PROMPTS[:1])
    first = small.model.generate(ids, **options, logits_processor=[processor])
    weights = processor.log_weights
    assert weights.shape == (20,) and weights.dtype == np.float64
    assert len(set(generated(first, 3))) > 3
    fewer = small.model.generate(
        ids, **{**options, "num_return_sequences": 5}, logits_processor=[processor]
    )
    assert generated(fewer, 3) == generated(first, 3)[:5]
    assert np.allclose(processor.log_weights, weights[:5], rtol=0, atol=1e-5)


def test_tokens_do_not_depend_on_company_order_or_padding(small: Any) -> None:
    matcher = small.matcher(*TEXTS)
    prompts = [[1, 3, 0], [2], [0, 0], [3, 3, 3, 1], [1], [PAD, 0]]

    def run(batch: list[list[int]]) -> dict[tuple[int, ...], tuple[tuple[int, ...], float]]:
        processor = ConstrainedSampling(matcher, small.vocabulary, seed=3, temperature=1.5)
        out = small.model.generate(
            **padded(batch), do_sample=True, max_new_tokens=8, logits_processor=[processor]
        )
        rows = generated(out, max(map(len, batch)))
        return {
            tuple(p): (r, w)
            for p, r, w in zip(batch, rows, processor.log_weights.tolist(), strict=True)
        }

    together = run(prompts)
    reverse = run(prompts[::-1])
    for prompt in prompts:
        alone = run([prompt])[tuple(prompt)]
        for other in (together[tuple(prompt)], reverse[tuple(prompt)]):
            assert other[0] == alone[0]
            assert abs(other[1] - alone[1]) < 1e-4  # the model's own noise in fp32


def test_a_batch_of_different_constraints(small: Any) -> None:
    languages = [("ab", "c"), ("b", "bb"), ("ccc",)]
    matchers = [small.matcher(*texts) for texts in languages]
    processor = ConstrainedSampling(matchers, small.vocabulary)
    for expand in (1, 4):
        out = small.model.generate(
            **padded(PROMPTS),
            do_sample=True,
            max_new_tokens=8,
            num_return_sequences=expand,
            logits_processor=[processor],
        )
        rows = generated(out, 3)
        assert len(rows) == 3 * expand == len(processor.status)
        for i, row in enumerate(rows):
            assert spelled(small, row) in languages[i // expand]
    with pytest.raises(InputError, match="3 constraints for 2 prompts"):
        small.model.generate(
            torch.tensor([[0], [1]]), do_sample=True, max_new_tokens=8, logits_processor=[processor]
        )
    with pytest.raises(InputError, match="one constraint, or a list"):
        ConstrainedSampling([], small.vocabulary)


def test_each_call_of_generate_starts_anew(small: Any) -> None:
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary, seed=5)
    options = {"do_sample": True, "max_new_tokens": 8, "logits_processor": [processor]}
    ids = torch.tensor([PROMPTS[0]])
    first = small.model.generate(ids, **options)
    weights = processor.log_weights
    assert torch.equal(small.model.generate(ids, **options), first)
    assert np.array_equal(processor.log_weights, weights)
    small.model.generate(torch.tensor([[0, 1], [1, 0]]), **options)
    assert processor.log_weights.shape == (2,)


def test_a_call_that_goes_on_from_the_last_ones_output_starts_anew(small: Any) -> None:
    """One token a call: the ids look exactly like the next step of the call before."""
    processor = ConstrainedSampling(small.matcher("a", "b", "c"), small.vocabulary)
    ids = torch.tensor([PROMPTS[0]])
    for _ in range(3):
        ids = small.model.generate(
            ids, do_sample=True, max_new_tokens=2, logits_processor=[processor]
        )
        assert processor.status == ["finished"]
        ids = ids[:, :-1]
    assert not {EOS, PAD, 2} & set(ids[0, 3:].tolist())
    assert ids.shape == (1, 6)


def test_rows_that_finished_keep_their_weight(small: Any) -> None:
    matchers = [small.matcher("a"), small.matcher("cccc")]
    both = ConstrainedSampling(matchers, small.vocabulary)
    out = small.model.generate(
        torch.tensor([[0], [1]]), do_sample=True, max_new_tokens=8, logits_processor=[both]
    )
    assert out[0, 1:].tolist() == [0, EOS, PAD, PAD, PAD]
    alone = ConstrainedSampling(matchers[0], small.vocabulary)
    small.model.generate(
        torch.tensor([[0]]), do_sample=True, max_new_tokens=8, logits_processor=[alone]
    )
    assert abs(both.log_weights[0] - alone.log_weights[0]) < 1e-5
    assert both.status == ["finished", "finished"]


def test_a_row_cut_off_by_the_limit_is_length(small: Any) -> None:
    """Where the matcher does not know how to finish; else nothing is started that cannot end."""

    @dataclass(frozen=True)
    class Unknowing(NoMask):
        has_mask: bool = True

        def tokens_to_finish(self, state: Any) -> None:
            return None

    matcher = Unknowing(small.matcher("ccccc"))
    processor = ConstrainedSampling(matcher, small.vocabulary)
    out = small.model.generate(
        torch.tensor([[0]]), do_sample=True, max_new_tokens=3, logits_processor=[processor]
    )
    assert out[0, 1:].tolist() == [3, 3, 3]
    assert processor.status == ["length"] and np.isfinite(processor.log_weights[0])


def test_within_the_limit_every_row_ends(small: Any) -> None:
    matcher = small.matcher("a", "ccccccc", "aaaaaaa")
    processor = ConstrainedSampling(matcher, small.vocabulary, temperature=3.0)
    out = small.model.generate(
        torch.tensor([[0]]),
        do_sample=True,
        max_new_tokens=3,
        num_return_sequences=50,
        logits_processor=[processor],
    )
    assert processor.status == ["finished"] * 50
    assert {spelled(small, row) for row in generated(out, 1)} == {"a"}
    with pytest.raises(ConstraintError, match="max_new_tokens"):
        small.model.generate(
            torch.tensor([[0]]),
            do_sample=True,
            max_new_tokens=3,
            logits_processor=[ConstrainedSampling(small.matcher("cccc"), small.vocabulary)],
        )


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_nan_logits_are_a_dead_row_and_nothing_else(
    small: Any, make_llama: Any, sampler: str
) -> None:
    class Broken:
        """Stands in for a model that breaks in its second step, in row 1."""

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if input_ids.shape[1] == 2:
                scores[1] = torch.nan
            return scores

    processor = ConstrainedSampling(small.matcher("aab"), small.vocabulary, sampler=sampler)
    out = small.model.generate(
        torch.tensor([[0], [1]]),
        do_sample=True,
        max_new_tokens=8,
        logits_processor=[Broken(), processor],
    )
    assert processor.status == ["finished", "dead"]
    assert processor.log_weights[1] == -np.inf and np.isfinite(processor.log_weights[0])
    assert "NaN" in processor.reasons[1]
    assert out[1, 1:].tolist()[:2] == [0, EOS]
    model = make_llama(6)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    model.generate(
        torch.tensor([[0]]), do_sample=True, max_new_tokens=8, logits_processor=[processor]
    )
    assert processor.status == ["dead"]


def test_a_constraint_that_fails_is_a_dead_row(small: Any) -> None:
    @dataclass(frozen=True)
    class Failing(NoMask):
        def allows(self, state: Any, token_ids: Any) -> Any:
            raise RuntimeError("the user's own bug")

    processor = ConstrainedSampling(Failing(small.matcher("a")), small.vocabulary)
    small.model.generate(
        torch.tensor([[0]]), do_sample=True, max_new_tokens=8, logits_processor=[processor]
    )
    assert processor.status == ["dead"] and "user's own bug" in processor.reasons[0]


def test_beam_search_is_masked_as_transformers_own_prefix_function_masks(small: Any) -> None:
    matcher = small.matcher(*TEXTS)
    processor = ConstrainedSampling(matcher, small.vocabulary)
    width = 3

    def allowed_tokens(_: int, ids: torch.Tensor) -> list[int]:
        state = matcher.start()
        for token in ids[width:].tolist():
            state = None if state is None else matcher.advance(state, token)
        if state is None:
            return [EOS]
        return np.flatnonzero(matcher.allows(state, range(6))).tolist() or [EOS]

    options = {"num_beams": 4, "max_new_tokens": 8, "num_return_sequences": 2}
    ours = small.model.generate(**padded(PROMPTS), **options, logits_processor=[processor])
    theirs = small.model.generate(
        **padded(PROMPTS), **options, prefix_allowed_tokens_fn=allowed_tokens
    )
    assert torch.equal(ours, theirs)
    assert {spelled(small, row) for row in generated(ours, width)} <= set(TEXTS)
    assert np.isnan(processor.log_weights).all() and processor.log_weights.shape == (12,)
    assert len(processor.status) == 12 and set(processor.checks) == {0}


def test_beam_sampling_stays_inside_the_constraint(small: Any) -> None:
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary, sampler="awrs")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = small.model.generate(
            **padded(PROMPTS),
            do_sample=True,
            num_beams=3,
            temperature=1.5,
            max_new_tokens=8,
            logits_processor=[processor],
        )
    assert {spelled(small, row) for row in generated(out, 3)} <= set(TEXTS)


@pytest.mark.parametrize("do_sample", [False, True])
def test_more_beams_than_texts(small: Any, do_sample: bool) -> None:
    """A prompt whose beams are at their ends waits; outputs without a beam are padding."""
    matchers = [small.matcher("a"), small.matcher("cccccc", "ccbccc"), small.matcher("b", "ab")]
    processor = ConstrainedSampling(matchers, small.vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        out = small.model.generate(
            **padded(PROMPTS),
            do_sample=do_sample,
            num_beams=3,
            num_return_sequences=3,
            max_new_tokens=8,
            logits_processor=[processor],
        )
    texts = [spelled(small, row) for row in generated(out, 3)]
    assert texts[0] == "a" and set(texts[:3]) <= {"a", ""}
    assert texts[3] in ("cccccc", "ccbccc") and set(texts[3:6]) <= {"cccccc", "ccbccc", ""}
    assert set(texts[6:]) <= {"b", "ab", ""}


def test_beams_need_a_mask_and_leave_the_law_to_generate(small: Any) -> None:
    ids = torch.tensor([[0]])
    bare = ConstrainedSampling(NoMask(small.matcher("a")), small.vocabulary)
    with pytest.raises(StrategyError, match="no mask"):
        small.model.generate(ids, num_beams=2, max_new_tokens=4, logits_processor=[bare])
    warm = ConstrainedSampling(small.matcher("a"), small.vocabulary, temperature=0.5)
    with pytest.raises(StrategyError, match="only masks under beam search"):
        small.model.generate(ids, num_beams=2, max_new_tokens=4, logits_processor=[warm])


@pytest.mark.parametrize(
    ("own", "asked", "named"),
    [
        ({}, {"temperature": 0.7}, "temperature=0.7"),
        ({"temperature": 0.5}, {"temperature": 0.7}, "temperature=0.7"),
        ({"temperature": 0.7}, {"temperature": 1.0}, "temperature=1.0"),
        ({}, {"top_p": 0.9}, "top_p=0.9, truncation="),
        ({}, {"top_k": 2}, "top_k=2, truncation="),
        ({}, {"top_k": 50}, "top_k=50, truncation="),
        ({}, {"min_p": 0.1}, "min_p=0.1, truncation="),
        ({"top_k": 2, "truncation": "target"}, {"top_k": 0}, "top_k=0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["keywords", "config", "model"])
def test_a_law_of_generate_that_differs_is_an_error(
    small: Any, make_llama: Any, own: Any, asked: Any, named: str, way: str
) -> None:
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary, **own)
    options = {"max_new_tokens": 4, "do_sample": True}
    model = small.model
    if way == "keywords":
        given: Any = {**options, **asked}
    elif way == "config":
        config = GenerationConfig(**options, **asked, eos_token_id=EOS, pad_token_id=PAD)
        given = {"generation_config": config}
    else:
        model = make_llama(6)
        model.generation_config.update(**asked)
        given = options
    with pytest.raises(StrategyError, match="ConstrainedSampling") as caught:
        model.generate(torch.tensor([[0]]), **given, logits_processor=[processor])
    assert named in str(caught.value)
    assert processor.status == []


@pytest.mark.parametrize(
    ("own", "asked"),
    [
        ({"temperature": 0.7}, {}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"top_k": 3, "truncation": "target"}, {}),
        ({"top_k": 3, "truncation": "target"}, {"top_k": 3}),
        ({"top_p": 0.9, "truncation": "after_mask"}, {"top_p": 0.9}),
        ({"min_p": 0.1, "truncation": "target"}, {"min_p": 0.1, "top_k": 0}),
        ({"temperature": 0.0}, {}),
    ],
    ids=str,
)
def test_the_processor_owns_the_law(small: Any, own: Any, asked: Any) -> None:
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary, **own)
    small.model.generate(
        torch.tensor([[0]]),
        do_sample=True,
        max_new_tokens=8,
        **asked,
        logits_processor=[processor],
    )
    assert processor.law.temperature == own.get("temperature", 1.0)
    assert processor.status[0] in ("finished", "dead")


@pytest.mark.parametrize("late", [{"typical_p": 0.5}, {"epsilon_cutoff": 0.01}, {"top_h": 0.5}])
def test_what_comes_after_the_draw_is_refused(small: Any, late: Any) -> None:
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary)
    with pytest.raises(StrategyError, match="after ConstrainedSampling"):
        small.model.generate(
            torch.tensor([[0]]),
            do_sample=True,
            max_new_tokens=4,
            **late,
            logits_processor=[processor],
        )


def test_processors_before_are_part_of_the_law(small: Any) -> None:
    """bad_words_ids takes a token out before; the weight is the mass under what is left."""
    processor = ConstrainedSampling(small.matcher("a", "b"), small.vocabulary)
    small.model.generate(
        torch.tensor([[0]]),
        do_sample=True,
        max_new_tokens=4,
        bad_words_ids=[[0], [3]],
        logits_processor=[processor],
    )
    law = small.log_law([0])
    left = [1, 2, 4, 5]
    first = law[1] - np.logaddexp.reduce(law[left])
    after = small.log_law([0, 1])
    second = after[EOS] - np.logaddexp.reduce(after[left])
    assert abs(processor.log_weights[0] - (first + second)) < 1e-4


def test_assisted_decoding_is_refused(small: Any) -> None:
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary)
    with pytest.raises(StrategyError, match="without drafts"):
        small.model.generate(
            torch.tensor([[0, 1, 0, 1]]),
            do_sample=True,
            max_new_tokens=8,
            prompt_lookup_num_tokens=2,
            logits_processor=[processor],
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows(small: Any, make_llama: Any, dtype: torch.dtype) -> None:
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary)
    model = make_llama(6).to(dtype)
    out = model.generate(
        torch.tensor([[0]]), do_sample=True, max_new_tokens=8, logits_processor=[processor]
    )
    assert spelled(small, generated(out, 1)[0]) in TEXTS
    scores = torch.zeros(1, 6, dtype=dtype)
    with pytest.warns(UncheckedLawWarning):
        forced = processor(torch.tensor([[0]]), scores)
    assert forced.dtype == dtype and torch.isfinite(forced).sum() == 1


def test_a_tokenizer_of_another_model_is_an_error(make_llama: Any, small: Any) -> None:
    processor = ConstrainedSampling(small.matcher("a"), small.vocabulary)
    for size in (5, 600, 4096):
        model = make_llama(size, eos_token_id=3, pad_token_id=2)
        model.generation_config.eos_token_id = EOS
        with pytest.raises(VocabularyError, match=f"6 tokens, for a model with {size} logits"):
            model.generate(
                torch.tensor([[0]]), do_sample=True, max_new_tokens=4, logits_processor=[processor]
            )
    padded_model = make_llama(64)
    padded_model.generate(
        torch.tensor([[0]]), do_sample=True, max_new_tokens=4, logits_processor=[processor]
    )
    assert processor.status == ["finished"]


class TestEndOfSequence:
    """Which token ends a text is what `generate()` stops at."""

    def test_a_vocabulary_that_ends_elsewhere_is_an_error(self, small: Any) -> None:
        letters = [b"a", b"b", b"ab", b"c", b"", b""]
        other = Vocabulary(letters, eos_ids=[4])
        matcher = type(small)(small.model, other).matcher("a")
        processor = ConstrainedSampling(matcher, other)
        with pytest.raises(VocabularyError, match=r"one of \[5\] as the first"):
            small.model.generate(
                torch.tensor([[0]]), do_sample=True, max_new_tokens=4, logits_processor=[processor]
            )
        several = Vocabulary(letters, eos_ids=[5, 4])
        matcher = type(small)(small.model, several).matcher("a")
        processor = ConstrainedSampling(matcher, several)
        small.model.generate(
            torch.tensor([[0]]), do_sample=True, max_new_tokens=4, logits_processor=[processor]
        )
        law, after = small.log_law([0]), small.log_law([0, 0])
        expected = law[0] + np.logaddexp(after[4], after[5])
        assert abs(processor.log_weights[0] - expected) < 1e-4

    def test_without_any_no_text_ends(self) -> None:
        with pytest.raises(VocabularyError, match="end-of-sequence id"):
            ConstrainedSampling("a", Vocabulary([b"a"], eos_ids=[]))


def loop(processor: Any, generation_config: Any, rows: list[list[int]], scores: Any) -> Any:
    """A decoding loop of somebody else: one step."""
    return processor(torch.tensor(rows), scores)


def test_without_a_configuration_it_warns_once(small: Any) -> None:
    processor = ConstrainedSampling(small.matcher("aab"), small.vocabulary)
    scores = torch.zeros(1, 6)
    with pytest.warns(UncheckedLawWarning, match="no generation_config"):
        first = processor(torch.tensor([[1, 1]]), scores).argmax().item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = processor(torch.tensor([[1, 1, first]]), scores).argmax().item()
        assert small.vocabulary.decode([first, second]) in (b"aa", b"aab")
        again = processor(torch.tensor([[1, 1]]), scores).argmax().item()
    assert again == first and processor.checks == [0]


def test_rows_must_go_on_with_the_tokens_drawn(small: Any) -> None:
    config = GenerationConfig(do_sample=True, max_length=10, eos_token_id=EOS)
    scores = torch.zeros(2, 6)
    processor = ConstrainedSampling(small.matcher("aab"), small.vocabulary)
    loop(processor, config, [[1], [3]], scores)
    for rows in ([[1, 3], [3, 0]], [[3, 0], [1, 0]]):
        with pytest.raises(StrategyError, match="do not continue"):
            loop(processor, config, rows, scores)
    loop(processor, config, [[1, 0], [3, 0]], scores)
    assert processor.status == ["running", "running"]


def test_on_given_logits_rows_do_not_depend_on_their_company(small: Any) -> None:
    """Bit for bit: random rows, the batch cut and permuted."""
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(7, 6)).astype(np.float32))
    prompts = [[i % 4, 1] for i in range(4)] + [[0, 0], [2, 2], [3, 3]]
    config = GenerationConfig(do_sample=True, max_length=10, eos_token_id=EOS)

    def run(order: list[int]) -> dict[int, tuple[int, float]]:
        processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary, sampler="awrs")
        forced = loop(processor, config, [prompts[i] for i in order], logits[order])
        tokens = forced.argmax(dim=1).tolist()
        weights = processor.log_weights.tolist()
        return {i: (t, w) for i, t, w in zip(order, tokens, weights, strict=True)}

    whole = run(list(range(7)))
    for order in ([6, 5, 4, 3, 2, 1, 0], [3], [2, 5], [4, 0, 6]):
        assert run(order) == {i: whole[i] for i in order}


def test_bad_options_name_the_argument(small: Any) -> None:
    matcher = small.matcher("a")
    for options, named in (
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.5}, "truncation"),
        ({"sampler": "best"}, "sampler"),
        ({"seed": -1}, "seed"),
        ({"backend": "cuda"}, "backend"),
        ({"sampler": "awrs", "top_p": 0.5, "truncation": "after_mask"}, "truncation"),
    ):
        with pytest.raises(InputError) as caught:
            ConstrainedSampling(matcher, small.vocabulary, **options)
        assert caught.value.argument == named
    with pytest.raises(StrategyError, match="without a mask"):
        ConstrainedSampling(NoMask(matcher), small.vocabulary, sampler="mask")
    other = Vocabulary([b"a", b"b", b""], eos_ids=[2])
    with pytest.raises(VocabularyError, match="compiled for the tokenizer's"):
        ConstrainedSampling(matcher, other)


def test_importing_it_loads_no_framework() -> None:
    code = (
        "import sys, midstream.logits_processors as m; "
        "assert m.ConstrainedSampling; "
        "heavy = {'torch', 'transformers', 'outlines', 'llguidance', 'tokenizers'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_end_of_sequence_is_where_generate_stops(make_llama: Any, tokenizer: Any) -> None:
    """With a tokenizer the ids of generation_config are taken, and the difference is told."""
    own = tokenizer.eos_token_id
    stop = own + 1 if own + 1 < len(tokenizer) else own - 1
    model = make_llama(len(tokenizer), eos_token_id=[stop, own], pad_token_id=own)
    processor = ConstrainedSampling(choice("yes", "no"), tokenizer)
    with pytest.warns(VocabularyWarning, match="taken: the former"):
        out = model.generate(
            torch.tensor([[300]]), do_sample=True, max_new_tokens=8, logits_processor=[processor]
        )
    assert processor.status == ["finished"] and out[0, -1] == stop
    model.generate(  # now the same on both sides: no second warning
        torch.tensor([[300]]), do_sample=True, max_new_tokens=8, logits_processor=[processor]
    )


def choice(*texts: str) -> Any:
    from midstream.middleware.constraints import Choice

    return Choice(texts)


@pytest.mark.parametrize(
    "setting",
    [
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"guidance_scale": 1.5},
        {"prefill_chunk_size": 2},
        {"output_scores": True, "output_logits": True, "return_dict_in_generate": True},
        {"repetition_penalty": 1.5},
        {"max_time": 60.0},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_other_settings_of_generate(small: Any, setting: Any) -> None:
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary)
    out = small.model.generate(
        torch.tensor([PROMPTS[0]] * 2),
        do_sample=True,
        max_new_tokens=8,
        **setting,
        logits_processor=[processor],
    )
    sequences = out if isinstance(out, torch.Tensor) else out.sequences
    assert {spelled(small, row) for row in generated(sequences, 3)} <= set(TEXTS)
    assert processor.status == ["finished"] * 2


def test_an_encoder_decoder_model(small: Any) -> None:
    """The prompt of a row is what its decoder begins with."""
    config = BartConfig(
        vocab_size=6,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        decoder_start_token_id=3,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config).eval()
    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary)
    rows = []
    for prompt in ([0, 1, 2], [1, 1, 1]):
        mask = [[0, 1, 1]] if prompt[0] else [[1, 1, 1]]
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.tensor(mask),
            do_sample=True,
            max_new_tokens=8,
            logits_processor=[processor],
        )
        rows += generated(out, 1)
    assert {spelled(small, row) for row in rows} <= set(TEXTS)
