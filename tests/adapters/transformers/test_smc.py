"""`generate(custom_generate=smc(...))`: exactness, and every setting honoured or refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GenerationConfig, TextStreamer

from midstream.adapters.transformers import SMCOutput, smc
from midstream.logits_processors import ConstrainedSampling
from midstream.middleware.errors import (
    ConstraintError,
    InputError,
    StrategyError,
    VocabularyError,
)

PAD, EOS = 4, 5
PROMPT = [1, 3, 0]
TEXTS = ("ab", "abc", "ca", "b", "cab", "ccab", "aab")
RUNS = 200
Z_BOUND = 5.0  # false alarm 6e-7 for each text


def ids(*prompts: list[int]) -> torch.Tensor:
    return torch.tensor([list(prompt) for prompt in prompts or (PROMPT,)])


def totals(small: Any, exact: dict[tuple[int, ...], float], **given: Any) -> float:
    """The worst z of E[sum of w 1{x} over N] - p(x), over texts and in total, for RUNS seeds."""
    options = {"particles": 4, **given.pop("options", {})}
    sums = []
    for seed in range(RUNS):
        run = smc(small.matcher(*TEXTS), small.vocabulary, seed=seed, **options)
        small.model.generate(ids(), custom_generate=run, max_new_tokens=8, **given)
        found = dict.fromkeys(exact, 0.0)
        for particle in run.result.particles:
            if particle.status == "finished":
                found[particle.token_ids] += math.exp(particle.log_weight) / options["particles"]
        assert sum(found.values()) == pytest.approx(math.exp(run.result.log_evidence))
        sums.append([*found.values(), sum(found.values())])
    values = np.array(sums)
    target = np.array([*exact.values(), sum(exact.values())])
    floor = (
        target * np.sqrt(1 / np.minimum(target, 0.5)) / 4
    )  # for texts that are hardly ever drawn
    return float(
        (abs(values.mean(0) - target) / np.maximum(values.std(0), floor)).max() * RUNS**0.5
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"sampler": "awrs"}, {"resampling": "multinomial"}, {"finished": "together"}],
    ids=str,
)
def test_the_evidence_and_every_text_are_unbiased(small: Any, options: Any) -> None:
    exact = small.texts(PROMPT, small.matcher(*TEXTS))
    assert totals(small, exact, options=options) < Z_BOUND


def test_the_temperature_of_generate_is_the_targets(small: Any) -> None:
    exact = small.texts(PROMPT, small.matcher(*TEXTS), lambda row: small.logits(row) / 0.5)
    asked = {"do_sample": True, "temperature": 0.5}
    assert totals(small, exact, **asked) < Z_BOUND
    plain = small.texts(PROMPT, small.matcher(*TEXTS))
    assert totals(small, plain, **asked) > Z_BOUND  # negative control: a silent 1.0


def test_truncation_of_generate_is_the_targets(small: Any) -> None:
    def top_3(row: Any) -> Any:
        logits = small.logits(row)
        return np.where(logits >= np.sort(logits)[-3], logits, -1e4)

    whole = small.texts(PROMPT, small.matcher(*TEXTS))
    exact = {text: p for text, p in small.texts(PROMPT, small.matcher(*TEXTS), top_3).items() if p}
    assert 2 < len(exact) < len(whole)
    asked = {"do_sample": True, "top_k": 3, "options": {"truncation": "target"}}
    assert totals(small, exact, **asked) < Z_BOUND
    with pytest.raises(StrategyError, match="after_mask"):
        run = smc(small.matcher(*TEXTS), small.vocabulary, particles=2)
        small.model.generate(ids(), custom_generate=run, max_new_tokens=8, do_sample=True, top_k=3)


def test_penalties_and_processors_of_generate_are_part_of_the_target(small: Any) -> None:
    def penalised(row: Any) -> Any:
        logits = small.logits(row)
        for token in set(row):
            logits[token] = logits[token] / 1.8 if logits[token] > 0 else logits[token] * 1.8
        logits[1] += 3.0
        return logits

    class Bias:
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores[:, 1] += 3.0
            return scores

    exact = small.texts(PROMPT, small.matcher(*TEXTS), penalised)
    asked = {"repetition_penalty": 1.8, "logits_processor": [Bias()]}
    assert totals(small, exact, **asked) < Z_BOUND
    assert totals(small, small.texts(PROMPT, small.matcher(*TEXTS)), **asked) > Z_BOUND


def test_more_particles_come_closer_to_the_conditional_law(small: Any) -> None:
    exact = small.texts(PROMPT, small.matcher(*TEXTS))
    truth: dict[str, float] = {}
    for text, p in exact.items():
        spelled = small.vocabulary.decode(text).decode()
        truth[spelled] = truth.get(spelled, 0.0) + p / sum(exact.values())

    def distance(particles: int) -> float:
        run = smc(small.matcher(*TEXTS), small.vocabulary, particles=particles, seed=1)
        small.model.generate(ids(), custom_generate=run, max_new_tokens=8)
        posterior = run.result.posterior()
        return sum(abs(truth[x] - posterior.get(x, 0.0)) for x in truth) / 2

    assert distance(2000) < 0.04 < distance(4)


def test_one_particle_is_the_processors_row(small: Any) -> None:
    """Same seed, same prompt: the same token ids, and the same weight up to the model's noise."""
    for seed in range(30):
        for sampler in ("mask", "awrs"):
            matcher = small.matcher(*TEXTS)
            run = smc(matcher, small.vocabulary, particles=1, seed=seed, sampler=sampler)
            one = small.model.generate(ids(), custom_generate=run, max_new_tokens=8)
            processor = ConstrainedSampling(matcher, small.vocabulary, seed=seed, sampler=sampler)
            other = small.model.generate(
                ids(), do_sample=True, max_new_tokens=8, logits_processor=[processor]
            )
            assert torch.equal(one, other)
            assert abs(processor.log_weights[0] - run.result.particles[0].log_weight) < 1e-4


def test_sequences_weights_and_results(small: Any) -> None:
    run = smc(small.matcher(*TEXTS), small.vocabulary, particles=5, seed=2)
    plain = small.model.generate(ids(), custom_generate=run, max_new_tokens=8)
    again = smc(small.matcher(*TEXTS), small.vocabulary, particles=5, seed=2)
    output = small.model.generate(
        ids(), custom_generate=again, max_new_tokens=8, return_dict_in_generate=True
    )
    assert isinstance(output, SMCOutput)
    assert torch.equal(output.sequences, plain) and torch.equal(output["sequences"], plain)
    assert plain.dtype == torch.long and plain.shape[0] == 5
    assert output.results == again.results and again.result is again.results[0]
    for row, particle in zip(plain.tolist(), run.result.particles, strict=True):
        tail = row[3 + len(particle.token_ids) :]
        assert (
            row[:3] == PROMPT and tuple(row[3 : 3 + len(particle.token_ids)]) == particle.token_ids
        )
        assert set(tail) <= {PAD}
    weights = [particle.log_weight for particle in again.result.particles]
    assert output.log_weights.tolist() == weights and output.log_weights.dtype == torch.float64


def test_prompts_of_a_batch_run_as_each_alone(small: Any) -> None:
    prompts = [[1, 3, 0], [2], [1, 3, 0]]
    batch = torch.tensor([[1, 3, 0], [PAD, PAD, 2], [1, 3, 0]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 1], [1, 1, 1]])
    matchers = [small.matcher(*TEXTS), small.matcher("cc", "b"), small.matcher(*TEXTS)]
    run = smc(matchers, small.vocabulary, particles=6, seed=4)
    out = small.model.generate(batch, attention_mask=mask, custom_generate=run, max_new_tokens=8)
    assert out.shape[0] == 18 and len(run.results) == 3
    assert torch.equal(out[:, :3], batch.repeat_interleave(6, dim=0))
    for row in (0, 1):
        alone = smc(matchers[row], small.vocabulary, particles=6, seed=4)
        small.model.generate(torch.tensor([prompts[row]]), custom_generate=alone, max_new_tokens=8)
        for one, other in zip(alone.result.particles, run.results[row].particles, strict=True):
            assert one.token_ids == other.token_ids
            assert abs(one.log_weight - other.log_weight) < 1e-4
    drawn = [[p.token_ids for p in run.results[row].particles] for row in (0, 2)]
    assert drawn[0] != drawn[1]  # the second occurrence of a prompt draws apart
    with pytest.raises(InputError, match="see `results`"):
        _ = run.result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_static_cache_gives_the_same_particles(make_llama: Any, small: Any, dtype: Any) -> None:
    model = make_llama(6).to(dtype)
    found = []
    for implementation in ("static", "dynamic", None):
        run = smc(small.matcher(*TEXTS), small.vocabulary, particles=5, seed=3)
        small_out = model.generate(
            ids(), custom_generate=run, max_new_tokens=8, cache_implementation=implementation
        )
        found.append((small_out.tolist(), run.result.log_evidence))
    noise = 1e-4 if dtype == torch.float32 else 0.2
    if dtype == torch.float32:
        assert found[0][0] == found[1][0] == found[2][0]
    assert abs(found[0][1] - found[1][1]) < noise and found[1] == found[2]


def test_rows_forwarded_are_the_prompt_and_the_distinct_live_tokens(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = type(small.model).forward

    def counting(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(type(small.model), "forward", counting)
    live: list[int] = []

    def on_step(particles: Any) -> None:
        live.append(len({p.token_ids for p in particles if p.status == "running"}))

    run = smc(small.matcher(*TEXTS), small.vocabulary, particles=20, on_step=on_step)
    small.model.generate(ids(), custom_generate=run, max_new_tokens=8)
    assert shapes[0] == (1, 3)
    assert shapes[1:] == [(count, 1) for count in live if count]


class TestSettings:
    """What is not honoured is refused, before any model call."""

    @pytest.mark.parametrize(
        "setting",
        [
            {"num_beams": 2},
            {"num_return_sequences": 2, "do_sample": True},
            {"temperature": 0.7},
            {"top_p": 0.7},
            {"typical_p": 0.5, "do_sample": True},
            {"top_h": 0.5, "do_sample": True},
            {"epsilon_cutoff": 0.1, "do_sample": True},
            {"use_cache": False},
            {"max_time": 1.0},
            {"output_scores": True},
            {"prompt_lookup_num_tokens": 2},
            {"cache_implementation": "offloaded"},
            {"guidance_scale": 2.0},
            {"past_key_values": DynamicCache()},
            {"prefix_allowed_tokens_fn": lambda batch, ids: [0]},
            {"stopping_criteria": [lambda ids, scores: torch.tensor([False])]},
            {"logits_processor": ["constrained"]},
            {"streamer": "text"},
            {"position_ids": torch.tensor([[3, 4, 5]])},
        ],
        ids=lambda setting: next(iter(setting)),
    )
    @pytest.mark.filterwarnings("ignore:.*generation flags:UserWarning")
    def test_refused(self, small: Any, tokenizer: Any, setting: Any, caplog: Any) -> None:
        if setting.get("logits_processor") == ["constrained"]:
            setting = {
                "logits_processor": [ConstrainedSampling(small.matcher("a"), small.vocabulary)]
            }
        if setting.get("streamer") == "text":
            setting = {"streamer": TextStreamer(tokenizer)}
        run = smc(small.matcher(*TEXTS), small.vocabulary, particles=2)
        with pytest.raises(StrategyError) as caught:
            self.unread(small, ids(), custom_generate=run, max_new_tokens=8, **setting)
        named = next(iter(setting))
        assert caught.value.argument in (named, "logits_processor")

    def unread(self, small: Any, *args: Any, **kwargs: Any) -> None:
        """generate() with a model that must not be called."""

        def refuse(module: Any, given: Any) -> None:
            raise AssertionError("the model was called")

        hook = small.model.register_forward_pre_hook(refuse)
        try:
            small.model.generate(*args, **kwargs)
        finally:
            hook.remove()

    def test_bad_options_and_constraints(self, small: Any, make_llama: Any) -> None:
        matcher = small.matcher("cccc")
        for bad in (0, -1, 2.5, True):
            with pytest.raises(StrategyError, match="particles"):
                smc(matcher, small.vocabulary, particles=bad)
        with pytest.raises(StrategyError, match="sampler"):
            smc(matcher, small.vocabulary, particles=1, sampler="best")
        for options, named in (
            ({"ess_threshold": 2.0}, "ess_threshold"),
            ({"resampling": "none"}, "resampling"),
            ({"finished": "never"}, "finished"),
            ({"resample_every": 0}, "resample_every"),
        ):
            run = smc(matcher, small.vocabulary, particles=2, **options)
            with pytest.raises(StrategyError, match=named):
                self.unread(small, ids(), custom_generate=run, max_new_tokens=8)
        run = smc(matcher, small.vocabulary, particles=2)
        with pytest.raises(ConstraintError, match="max_new_tokens"):
            self.unread(small, ids(), custom_generate=run, max_new_tokens=3)
        with pytest.raises(InputError, match="prompt: got 200 tokens"):
            self.unread(small, ids([1] * 200), custom_generate=run, max_new_tokens=3)
        with pytest.raises(InputError, match="the model takes 128 tokens"):
            self.unread(small, ids([1] * 100), custom_generate=run, max_new_tokens=50)
        with pytest.raises(VocabularyError, match="logits"):
            make_llama(4096).generate(ids(), custom_generate=run, max_new_tokens=8)

    def test_the_librarys_top_k_of_50_is_no_truncation(self, small: Any) -> None:
        run = smc(small.matcher(*TEXTS), small.vocabulary, particles=2)
        small.model.generate(ids(), custom_generate=run, max_new_tokens=8, do_sample=True)
        assert run.result.proper
        config = GenerationConfig(
            do_sample=True, top_k=50, max_new_tokens=8, eos_token_id=EOS, pad_token_id=PAD
        )
        with pytest.raises(StrategyError, match="truncation"):
            small.model.generate(ids(), custom_generate=run, generation_config=config)


def test_a_broken_model_is_a_result(make_llama: Any, small: Any) -> None:
    model = make_llama(6)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    run = smc(small.matcher(*TEXTS), small.vocabulary, particles=3)
    out = model.generate(ids(), custom_generate=run, max_new_tokens=8)
    assert out.tolist() == [PROMPT] * 3
    assert run.result.status == "dead" and run.result.log_evidence == -math.inf
    assert all("NaN" in particle.reason for particle in run.result.particles)


def test_a_run_can_be_cancelled(small: Any) -> None:
    asked = iter([False, False, True])
    run = smc(small.matcher("aaaaaa"), small.vocabulary, particles=3, cancelled=lambda: next(asked))
    small.model.generate(ids(), custom_generate=run, max_new_tokens=8)
    assert run.result.status == "cancelled"
    assert [particle.token_ids for particle in run.result.particles] == [(0, 0)] * 3


class Collector:
    """A streamer that keeps what it gets, and how much it had at each step of the run."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True

    def generated(self) -> list[int]:
        """What came after the prompt."""
        return list(itertools.chain.from_iterable(self.tokens[1:]))


def test_a_streamer_gets_what_is_certain_and_then_the_rest(small: Any) -> None:
    early = 0
    for seed in range(10):
        streamer, seen = Collector(), []

        def on_step(particles: Any, streamer: Collector = streamer, seen: list[Any] = seen) -> None:
            live = [p.token_ids for p in particles if p.log_weight > -math.inf]
            seen.append((live, streamer.generated()))

        run = smc(
            small.matcher("cccab", "cccb", "ccca"),
            small.vocabulary,
            particles=5,
            seed=seed,
            streamer=streamer,
            on_step=on_step,
        )
        small.model.generate(ids(), custom_generate=run, max_new_tokens=8)
        assert streamer.tokens[0] == PROMPT and streamer.ended
        final = tuple(streamer.generated())
        best = max(run.result.particles, key=lambda particle: particle.log_weight)
        assert final == best.token_ids
        for live, sent in seen:
            assert all(tuple(sent) == tokens[: len(sent)] for tokens in live)
        early += len(seen[-1][1])
        assert seen[2][1] == [3, 3]  # c is certain at once, and was sent before the step after
    assert early >= 20
    with pytest.raises(StrategyError, match="one prompt"):
        two = smc(small.matcher("a"), small.vocabulary, particles=2, streamer=Collector())
        small.model.generate(ids([1], [2]), custom_generate=two, max_new_tokens=8)
