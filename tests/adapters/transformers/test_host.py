"""TransformersHost: the logits of a whole forward pass, at one forward row for each token."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from midstream.adapters.transformers import StaticSize, TransformersHost, TransformersRows
from midstream.middleware.errors import InputError, VocabularyError

PROMPTS = [[1, 2, 3, 0], [2], [3, 1]]
SIZES = (3, 5, 2, 1, 4, 4, 5, 1)


def walk(host: Any, seed: int = 0) -> list[tuple[torch.Tensor, list[int]]]:
    """Random growth, resampling, dropping and forking: every row's logits with its ids."""
    rng = random.Random(seed)
    rows, ids = host.start(PROMPTS), PROMPTS
    seen = list(zip(rows.logits, ids, strict=True))
    for count in SIZES:
        parents = [rng.randrange(len(ids)) for _ in range(count)]
        tokens = [rng.randrange(4) for _ in range(count)]
        rows = rows.advance(parents, tokens)
        ids = [ids[parent] + [token] for parent, token in zip(parents, tokens, strict=True)]
        assert rows.logits.shape == (count, 6)
        seen += zip(rows.logits, ids, strict=True)
    return seen


def worst(small: Any, seen: list[tuple[torch.Tensor, list[int]]]) -> float:
    gaps = [logits.double() - torch.tensor(small.logits(ids)) for logits, ids in seen]
    return float(torch.stack(gaps).abs().max())


@pytest.mark.parametrize("static", [None, StaticSize(rows=5, tokens=20)], ids=str)
def test_rows_equal_a_whole_forward_pass(small: Any, static: Any) -> None:
    host = TransformersHost(small.model, small.vocabulary, static=static)
    seen = walk(host)
    assert worst(small, seen) < 2e-5
    assert all(logits.dtype == torch.float32 for logits, _ in seen)


def test_the_check_fails_when_the_cache_stays_in_place(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: rows that move without their keys and values."""
    from transformers import DynamicCache

    def resize_only(self: Any, index: torch.Tensor) -> None:
        for layer in self.layers:
            kept = torch.arange(len(index)) % layer.keys.shape[0]
            layer.keys, layer.values = layer.keys[kept], layer.values[kept]

    monkeypatch.setattr(DynamicCache, "reorder_cache", resize_only)
    assert worst(small, walk(TransformersHost(small.model, small.vocabulary))) > 1e-2


@pytest.mark.parametrize("static", [None, StaticSize(rows=5, tokens=20)], ids=str)
def test_bf16_rows_are_float32(make_llama: Any, small: Any, static: Any) -> None:
    """Their distance from a whole forward pass is what bf16 makes of another shape of matrices."""
    model = make_llama(6, seed=1).to(torch.bfloat16)
    seen = walk(TransformersHost(model, small.vocabulary, static=static))
    assert all(logits.dtype == torch.float32 for logits, _ in seen)
    assert 0 < worst(small, seen) < 0.3


def test_one_forward_row_for_each_token(small: Any) -> None:
    host = TransformersHost(small.model, small.vocabulary)
    rows = host.start([[1, 2, 3]])
    assert host.forwarded_tokens == 0  # nothing is read before it is looked at
    assert rows.logits.shape == (1, 6) and host.forwarded_tokens == 3
    for step in range(10):
        rows = rows.advance([0] * 4 if step == 0 else [3, 2, 1, 0], [0, 1, 2, 3])
    assert host.forwarded_tokens == 3 + 40
    fixed = TransformersHost(small.model, small.vocabulary, static=StaticSize(rows=5, tokens=20))
    rows = fixed.start([[1, 2, 3]])
    for _ in range(10):
        rows = rows.advance([0, 0], [1, 2])
    assert fixed.forwarded_tokens == 3 + 50  # the batch stays 5 rows wide


def test_only_the_last_position_gets_logits(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    head = type(small.model.lm_head).forward

    def counting(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        if self is small.model.lm_head:
            widths.append(hidden.shape[1])
        return head(self, hidden)

    monkeypatch.setattr(type(small.model.lm_head), "forward", counting)
    TransformersHost(small.model, small.vocabulary).start(PROMPTS).advance([0], [1])
    assert widths == [1, 1]


def test_in_a_batch_of_fixed_width_a_row_is_the_same_bits_in_any_company(small: Any) -> None:
    def last(company: list[int]) -> torch.Tensor:
        host = TransformersHost(small.model, small.vocabulary, static=StaticSize(8, 20))
        rows = host.start([[1, 2, 3]]).advance([0] * len(company), company)
        return rows.advance([0] * 2, [3, company[-1]]).logits[0]

    alone = last([2])
    for company in ([2, 0], [2, 1, 1, 3], [2, 0, 1, 2, 3, 0, 1]):
        assert torch.equal(last(company), alone)


def test_the_receivers_logits_stay_readable_and_it_advances_once(small: Any) -> None:
    rows = TransformersHost(small.model, small.vocabulary).start([[1, 2]])
    before = rows.logits.clone()
    after = rows.advance([0, 0], [0, 1])
    assert torch.equal(rows.logits, before)
    with pytest.raises(InputError, match="advanced already"):
        rows.advance([0], [0])
    assert isinstance(after, TransformersRows)
    for parents, tokens in (([], []), ([0], [1, 2]), ([2], [0]), ([-1], [0])):
        with pytest.raises(InputError, match="parents"):
            after.advance(parents, tokens)


def test_bad_prompts_are_named_before_any_model_call(small: Any, make_llama: Any) -> None:
    host = TransformersHost(small.model, small.vocabulary)
    for prompts, named in (
        ([], "prompts"),
        ([[]], "prompts"),
        ([[1], []], "prompts"),
        ([[6]], "prompts"),
        ([[-1]], "prompts"),
        ([[1] * 129], "prompt"),
    ):
        with pytest.raises(InputError) as caught:
            host.start(prompts)
        assert caught.value.argument == named
    with pytest.raises(InputError, match="at most 8: the model takes 128 tokens"):
        host.check_length(120, 9)
    host.check_length(120, 8)
    static = TransformersHost(small.model, small.vocabulary, static=StaticSize(2, 10))
    with pytest.raises(InputError, match="at most 2"):
        static.start(PROMPTS)
    with pytest.raises(InputError, match="rows"):
        StaticSize(0, 10)
    assert host.forwarded_tokens == static.forwarded_tokens == 0
    with pytest.raises(VocabularyError, match="6 tokens, for a model with 4096 logits"):
        TransformersHost(make_llama(4096), small.vocabulary)
    with pytest.raises(VocabularyError, match="6 tokens, for a model with 5 logits"):
        TransformersHost(make_llama(5, pad_token_id=1, eos_token_id=2), small.vocabulary)


def test_a_tokenizer_gives_the_vocabulary(make_llama: Any, tokenizer: Any) -> None:
    own = tokenizer.eos_token_id
    model = make_llama(len(tokenizer) + 32, eos_token_id=own, pad_token_id=own)
    host = TransformersHost(model, tokenizer)
    assert host.vocabulary.eos_ids == (own,)
    assert host.start([tokenizer("a text")["input_ids"]]).logits.shape[1] == len(tokenizer) + 32
