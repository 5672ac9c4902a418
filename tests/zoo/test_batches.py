"""Packed batches: resumable, and aimed at the answers and their ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import pytest

Load = Callable[[str], ModuleType]


@pytest.mark.parametrize("name", ["general", "second"])
def test_batch_is_a_function_of_seed_and_step(
    load_zoo: Load, model_folders: dict[str, Path], name: str
) -> None:
    batches, specs = load_zoo("batches"), load_zoo("specs")
    library = load_zoo("makers.python_code").Library(("def f():\n    pass",), ("Text.",), ())
    spec = specs.SPECS[name]
    tokenizer, eos, _ = specs.load_tokenizer(model_folders[name])
    for step in (0, 3, 31):
        first, used = batches.make_batch(spec.mix, library, tokenizer, eos, 0, step)
        again, _ = batches.make_batch(spec.mix, library, tokenizer, eos, 0, step)
        assert np.array_equal(first.ids, again.ids)
        assert np.array_equal(first.is_target, again.is_target)
        assert first.ids.shape[1] == batches.sequence_length(step) + 1
        # Every end of sequence is a target, since it ends an answer.
        assert first.is_target[first.ids[:, 1:] == eos].all()
        assert 0.3 < first.is_target.mean() < 0.9
        assert used
    zero, one = (
        batches.make_batch(spec.late_mix, library, tokenizer, eos, seed, 0)[0].ids
        for seed in (0, 1)
    )
    assert not np.array_equal(zero, one)


@pytest.mark.parametrize("name", ["general", "draft", "second"])
def test_a_prompt_keeps_its_ids_when_the_answer_follows(
    load_zoo: Load, model_folders: dict[str, Path], name: str
) -> None:
    corpus, specs = load_zoo("corpus"), load_zoo("specs")
    tokenizer, _, _ = specs.load_tokenizer(model_folders[name])
    rng = Random(4)
    for task in specs.SPECS[name].mix:
        if task not in corpus.MAKERS:
            continue
        for _ in range(100):
            item = corpus.draw_item(task, rng, held_out=False)
            before = tokenizer.encode(item.prompt).ids
            whole = tokenizer.encode(item.prompt + item.answer).ids
            assert whole[: len(before)] == before
            assert tokenizer.decode(whole, skip_special_tokens=True) == item.prompt + item.answer
