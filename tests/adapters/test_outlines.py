"""A real Outlines model with midstream's processor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import outlines
import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForCausalLM, AutoTokenizer

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.outlines import outlines_processor
from midstream.middleware.errors import StrategyError


class Pet(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog"]
    legs: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    path = embedded_model_path()
    language_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    yield outlines.from_transformers(language_model, AutoTokenizer.from_pretrained(path))
    torch.set_num_threads(before)


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_one_changed_line(model: Any, sampler: str) -> None:
    processor = outlines_processor(model, Literal["red", "green", "blue"], sampler=sampler)
    generator = outlines.Generator(model, processor=processor)
    texts = {generator("The colour is ", do_sample=True, max_new_tokens=8)}
    assert texts <= {"red", "green", "blue"}
    assert processor.status == ["finished"] and processor.log_weights[0] < 0
    again = generator("The colour is ", do_sample=True, max_new_tokens=8)
    assert {again} == texts  # the same seed and prompt


def test_pydantic_models_batches_and_several_samples(model: Any) -> None:
    processor = outlines_processor(model, Pet, temperature=1.5, seed=1)
    generator = outlines.Generator(model, processor=processor)
    one = generator("A pet: ", do_sample=True, max_new_tokens=40)
    assert Pet.model_validate_json(one)
    batch = generator.batch(["A pet: ", "Two: "], do_sample=True, max_new_tokens=40)
    assert [Pet.model_validate_json(text) for text in batch]
    assert batch[0] == one and processor.log_weights.shape == (2,)
    several = generator("A pet: ", do_sample=True, max_new_tokens=40, num_return_sequences=6)
    assert several[0] == one and len(set(several)) > 1
    assert np.isfinite(processor.log_weights).all()


def test_one_constraint_for_each_prompt(model: Any) -> None:
    processor = outlines_processor(model, [outlines.types.integer, Literal["x", "y"]])
    generator = outlines.Generator(model, processor=processor)
    number, letter = generator.batch(["1 + 1 = ", "letter: "], do_sample=True, max_new_tokens=12)
    assert int(number) is not None and letter in ("x", "y")


def test_the_default_of_outlines_is_greedy(model: Any) -> None:
    texts = {
        outlines.Generator(
            model, processor=outlines_processor(model, Literal["red", "green"], seed=seed)
        )("The colour is ", max_new_tokens=8)
        for seed in range(5)
    }
    assert len(texts) == 1


def test_a_model_that_is_not_of_transformers() -> None:
    class Remote:
        pass

    with pytest.raises(StrategyError, match="from_transformers"):
        outlines_processor(Remote(), Literal["a", "b"])
