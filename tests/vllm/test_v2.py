"""The interface of the V2 model runner: its real loader and context, tensors of the CPU.

The runner itself needs a GPU and is not run here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from midstream.adapters.vllm import ConstrainedSampling
from midstream.adapters.vllm.records import RECORDS_HERE
from midstream.adapters.vllm.request import plan_of
from midstream.middleware.random import Stream, sequence_of
from midstream.middleware.sampling import sampler_of

SLOTS, LENGTH = 4, 64
REGEX = {"constraint": {"regex": "San (Antonio|Marino)|Rome|Porto"}}


@pytest.fixture
def states(engine: Any) -> Any:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcRequestState

    size = engine.llm_engine.vllm_config.model_config.get_vocab_size()
    ids = SimpleNamespace(gpu=torch.zeros(SLOTS, LENGTH, dtype=torch.int32))
    lengths = [SimpleNamespace(np=np.zeros(SLOTS, np.int32)) for _ in range(3)]
    return LogitsProcRequestState(
        device=torch.device("cpu"),
        max_num_reqs=SLOTS,
        vocab_size=size,
        all_token_ids=ids,
        prompt_len=lengths[0],
        prefill_len=lengths[1],
        total_len=lengths[2],
    )


@pytest.fixture
def processor(engine: Any, states: Any) -> Any:
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    name = "midstream.adapters.vllm:ConstrainedSampling"
    (found,) = _load_v2_logitsprocs_by_fqcns([name])
    assert found is ConstrainedSampling
    return found(engine.llm_engine.vllm_config, states)


def _context(rows: list[tuple[int, int, int, int]], slots: list[int]) -> Any:
    """rows: (slot, place among the request's rows, token fed, position)."""
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext

    slot, place, fed, position = (torch.tensor(column) for column in zip(*rows, strict=True))
    return LogitsContext(
        expanded_idx_mapping=slot,
        idx_mapping=torch.tensor(slots),
        idx_mapping_np=np.array(slots),
        expanded_local_pos=place,
        input_ids=fed,
        pos=position,
        seq_lens_upper_bound_np=np.full(len(slots), LENGTH),
    )


def _admit(ask: Any, **fields: Any) -> Any:
    params = ask(REGEX, **fields)
    ConstrainedSampling.validate_params(params)
    return params


def _forced(logits: torch.Tensor) -> list[int]:
    assert (torch.isfinite(logits).sum(dim=1) == 1).all()
    return logits.argmax(dim=1).tolist()


def _expected(engine: Any, params: Any, prompt: list[int], output: list[int], row: Any) -> int:
    from midstream.adapters.vllm.vocabulary import engine_vocabulary
    from midstream.middleware.budget import within_budget

    plan = plan_of(params)
    assert plan is not None
    vocabulary = engine_vocabulary(engine.llm_engine.vllm_config)
    compiled = plan.strategy.build_constraint().compile(vocabulary)
    matcher = within_budget(compiled, plan.max_new_tokens)
    state = matcher.start()
    for token in output:
        state = matcher.advance(state, token)
    stream = Stream(0, sequence_of(prompt, 0), len(output))
    return sampler_of("auto").draw(row, matcher, state, stream, law=plan.law).token


def _write(states: Any, slot: int, prompt: list[int], output: list[int]) -> None:
    ids = [*prompt, *output]
    states.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
    states.prompt_len.np[slot] = len(prompt)


def test_rows_of_a_step_with_drafts(
    engine: Any, processor: Any, states: Any, ask: Any, tokenizer: Any
) -> None:
    """Each draft position is drawn with the history up to it."""
    prompt = tokenizer("Guest 7 picks a city:\n").input_ids
    san = tokenizer("San", add_special_tokens=False).input_ids
    assert len(san) == 1
    params = _admit(ask)
    assert processor.add_request(2, params)
    processor.apply_staged_writes()
    _write(states, 2, prompt, [])
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, states.vocab_size, generator=generator)
    last = len(prompt) - 1
    plain = logits[0].clone()
    context = _context(
        [(0, 0, 5, 9), (2, 0, prompt[-1], last), (2, 1, san[0], last + 1)], slots=[0, 2]
    )
    rows = logits.numpy().copy()
    processor.apply(logits, context)
    assert torch.equal(logits[0], plain)
    drawn = _forced(logits[1:])
    assert drawn[0] == _expected(engine, params, prompt, [], rows[1])
    assert drawn[1] == _expected(engine, params, prompt, san, rows[2])


def test_a_draft_that_is_not_allowed_ends_its_own_row_alone(
    engine: Any, processor: Any, states: Any, ask: Any, tokenizer: Any
) -> None:
    """The engine throws such a draft away; the request goes on at the next step."""
    prompt = tokenizer("Guest 7 picks a city:\n").input_ids
    (refused,) = tokenizer("Q", add_special_tokens=False).input_ids
    params = _admit(ask)
    processor.add_request(2, params)
    _write(states, 2, prompt, [])
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, states.vocab_size, generator=generator)
    rows, last = logits.numpy().copy(), len(prompt) - 1
    context = _context([(2, 0, prompt[-1], last), (2, 1, refused, last + 1)], slots=[2])
    first, after = _forced(processor.apply(logits, context))
    assert first == _expected(engine, params, prompt, [], rows[0])
    assert after == tokenizer.eos_token_id
    _write(states, 2, prompt, [first])
    row = torch.randn(1, states.vocab_size, generator=generator)
    expected = _expected(engine, params, prompt, [first], row[0].numpy().copy())
    context = _context([(2, 0, first, last + 1)], slots=[2])
    assert _forced(processor.apply(row, context)) == [expected]


def test_chunks_of_a_step_and_steps_again_draw_the_same(
    engine: Any, processor: Any, states: Any, ask: Any, tokenizer: Any
) -> None:
    prompt = tokenizer("Guest 8 picks a city:\n").input_ids
    params = _admit(ask)
    processor.add_request(1, params)
    _write(states, 1, prompt, [])
    row = torch.randn(1, states.vocab_size, generator=torch.Generator().manual_seed(2))
    context = _context([(1, 0, prompt[-1], len(prompt) - 1)], slots=[1])
    tokens = [_forced(processor.apply(row.clone(), context)) for _ in range(3)]
    assert tokens[0] == tokens[1] == tokens[2]
    plan = plan_of(params)
    assert plan is not None
    assert len(RECORDS_HERE.read(plan.key) or {}) == 1


def test_a_slot_that_is_used_again_starts_anew(
    engine: Any, processor: Any, states: Any, ask: Any, tokenizer: Any
) -> None:
    row = torch.randn(1, states.vocab_size, generator=torch.Generator().manual_seed(3))
    for guest in (1, 22, 333):
        prompt = tokenizer(f"Guest {guest} picks a city:\n").input_ids
        params = _admit(ask)
        assert processor.add_request(0, params)
        _write(states, 0, prompt, [])
        context = _context([(0, 0, prompt[-1], len(prompt) - 1)], slots=[0])
        drawn = _forced(processor.apply(row.clone(), context))
        assert drawn == [_expected(engine, params, prompt, [], row[0].numpy())]
    from vllm import SamplingParams

    assert not processor.add_request(0, SamplingParams())
    assert torch.equal(processor.apply(row.clone(), context), row)


def test_what_cannot_be_read_ends_its_own_request(
    processor: Any, states: Any, tokenizer: Any
) -> None:
    from vllm import SamplingParams

    prompt = tokenizer("Guest 9 picks a city:\n").input_ids
    broken = SamplingParams(extra_args={"midstream": {"strategy": 5}})
    assert processor.add_request(3, broken)
    _write(states, 3, prompt, [])
    row = torch.zeros(1, states.vocab_size)
    context = _context([(3, 0, prompt[-1], len(prompt) - 1)], slots=[3])
    assert _forced(processor.apply(row, context)) == [tokenizer.eos_token_id]
