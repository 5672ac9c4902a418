"""ConstrainedSampling with logits on a GPU. Everything here is skipped where there is none; the
same is tested with Triton's interpreter in tests/interpreter.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from midstream.logits_processors import ConstrainedSampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TEXTS = ("ab", "abc", "ca", "b", "cab", "ccab", "aab")


@pytest.fixture(scope="module")
def model(make_llama: Any) -> Any:
    return make_llama(6, seed=1).cuda()


def generate(model: Any, processor: Any, **options: Any) -> list[list[int]]:
    ids = torch.tensor([[1, 3, 0], [0, 2, 0]], device="cuda")
    settings = {"do_sample": True, "max_new_tokens": 8, **options}
    out: torch.Tensor = model.generate(ids, **settings, logits_processor=[processor])
    return out.tolist()


@pytest.mark.parametrize(
    ("law", "options"),
    [
        ({"temperature": 0.6}, {"num_return_sequences": 50}),
        ({}, {"do_sample": False}),
        ({"top_p": 0.8, "truncation": "target"}, {}),
        ({"top_k": 3, "truncation": "after_mask"}, {}),
        ({"sampler": "awrs"}, {}),
    ],
    ids=str,
)
def test_the_kernels_give_what_numpy_gives(small: Any, model: Any, law: Any, options: Any) -> None:
    found = []
    for backend in ("auto", "numpy"):
        processor = ConstrainedSampling(
            small.matcher(*TEXTS), small.vocabulary, seed=3, backend=backend, **law
        )
        found.append((generate(model, processor, **options), processor))
    (ours, mine), (host, numpys) = found
    assert ours == host and mine.status == numpys.status
    np.testing.assert_allclose(mine.log_weights, numpys.log_weights, rtol=0, atol=2e-6)


def test_a_step_waits_once_for_the_device(small: Any, model: Any) -> None:
    class Counted:
        def __init__(self, processor: ConstrainedSampling) -> None:
            self.processor = processor
            self.waits: list[int] = []

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    forced = self.processor(input_ids, scores)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            self.waits.append(sum("synchronizing" in str(each.message) for each in caught))
            return forced

    processor = ConstrainedSampling(small.matcher(*TEXTS), small.vocabulary, seed=3)
    generate(model, processor)  # compiles the kernels
    counted = Counted(processor)
    generate(model, counted)
    assert len(counted.waits) > 2 and set(counted.waits) == {1}
