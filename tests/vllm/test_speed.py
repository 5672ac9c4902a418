"""What the processor costs where it is loaded and nobody asks for it."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

PAIRS = 14


def test_a_processor_that_nobody_uses_costs_nothing(
    engine: Any, make_engine: Callable[..., Any], generate: Callable[..., Any]
) -> None:
    """Pairs of rounds next to each other, the order reversed every other time, by the time of the
    processor that this thread, which decodes, had: what else runs is not in it.

    The target is 0.98 of the throughput without; below 0.93 something is wrong.
    """
    from vllm import SamplingParams

    without = make_engine(logits_processors=None, worker_extension_cls="")
    prompts = [f"Guest {i} was here:\n" for i in range(16)]

    def seconds(on: Any, seed: int) -> float:
        params = SamplingParams(max_tokens=32, ignore_eos=True, seed=seed)
        begin = time.thread_time()
        generate(prompts, params, on)
        return time.thread_time() - begin

    ratios = []
    gc.disable()
    try:
        for turn in range(-2, PAIRS):
            order = [without, engine] if turn % 2 else [engine, without]
            taken = {id(on): seconds(on, turn + 2) for on in order}
            if turn >= 0:
                ratios.append(taken[id(without)] / taken[id(engine)])
    finally:
        gc.enable()
    assert statistics.median(ratios) >= 0.93, ratios
