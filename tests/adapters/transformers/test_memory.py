"""Two thousand tokens: beyond the cache of keys and values, memory does not grow with the steps."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from midstream.adapters.transformers import smc
from midstream.kernels.bitmask import pack_mask
from midstream.logits_processors import ConstrainedSampling
from midstream.middleware.vocabulary import Vocabulary

SIZE, EOS, ROWS = 4096, 4095, 4
KV_BYTES = ROWS * 2 * 2 * 64 * 4  # of one step: layers, keys and values, width, float32
SLACK_BYTES = 12 << 20  # what the allocator of a process scatters


@dataclass(frozen=True)
class Exactly:
    """Any text of so many tokens, its end among them. A state is a count."""

    tokens: int
    vocabulary: Vocabulary
    has_mask: bool = True
    mask_cost: float = 1.0

    def start(self) -> int:
        return 0

    def _ends(self, state: int) -> bool:
        return state == self.tokens - 1

    def allows(self, state: int, token_ids: Any) -> Any:
        return (np.asarray(token_ids) == EOS) == self._ends(state)

    def advance(self, state: int, token_id: int) -> int | None:
        return state + 1 if (token_id == EOS) == self._ends(state) else None

    def mask(self, state: int, out: Any) -> None:
        pack_mask((np.arange(SIZE) == EOS) == self._ends(state), out)

    def superset(self, state: int, out: Any) -> bool:
        return False

    def accepts(self, state: int) -> bool:
        return self._ends(state)

    def tokens_to_finish(self, state: int) -> None:
        return None


class Watch:
    """The process's memory at two steps; with `leak` it also keeps what it is shown."""

    def __init__(self, steps: tuple[int, int], leak: bool) -> None:
        self._at = steps
        self._leak = leak
        self._kept: list[Any] = []
        self._steps = 0
        self.used: list[int] = []

    def step(self, shown: Any) -> None:
        self._steps += 1
        if self._leak:
            self._kept.append(shown)
        if self._steps in self._at:
            gc.collect()
            # What earlier tests freed would hide what this one keeps.
            ctypes.CDLL(None).malloc_trim(0)
            self.used.append(psutil.Process().memory_info().rss)


class Logits:
    """A processor that shows what it sees."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._watch.step(scores.clone())
        return scores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "leak"), [(2000, False), (1000, True)], ids=["ours", "negative control"]
)
@pytest.mark.parametrize("way", ["particles", "processor"])
def test_memory_is_flat_beyond_the_cache(
    make_llama: Any, way: str, tokens: int, leak: bool
) -> None:
    model = make_llama(
        SIZE, max_position_embeddings=tokens + 8, eos_token_id=EOS, pad_token_id=None
    )
    vocabulary = Vocabulary([*(b"%04x" % token for token in range(EOS)), b""], eos_ids=[EOS])
    matcher = Exactly(tokens, vocabulary)
    begin, end = tokens // 5, tokens - 20
    watch = Watch((begin, end), leak)
    given: dict[str, Any] = {"max_new_tokens": tokens, "logits_processor": [Logits(watch)]}
    if way == "particles":
        run = smc(matcher, vocabulary, particles=ROWS)
        model.generate(torch.tensor([[1]]), custom_generate=run, **given)
        assert run.result.status == "finished"
        assert len(run.result.particles[0].token_ids) == tokens
    else:
        processor = ConstrainedSampling(matcher, vocabulary)
        given["logits_processor"].append(processor)
        model.generate(torch.tensor([[1]] * ROWS), do_sample=True, **given)
        assert processor.status == ["finished"] * ROWS
    growth = watch.used[1] - watch.used[0]
    allowed = 2 * (end - begin) * KV_BYTES + SLACK_BYTES
    assert (growth < allowed) is not leak, f"{growth / 2**20:.1f} MiB"
