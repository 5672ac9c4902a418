"""Timing on a GPU: calls in one CUDA graph, each on buffers of its own, so that no call finds its
input in the cache that the one before it filled.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

REPLAYS = 15
"""The median of so many replays of a graph."""


def buffers_needed(nbytes: int) -> int:
    """How many inputs of so many bytes pass twice the L2 cache, at least 2."""
    cache = int(torch.cuda.get_device_properties(0).L2_cache_size)
    return max(2, -(-2 * cache // nbytes))


def graph_us(calls: Sequence[Callable[[], object]]) -> float:
    """Microseconds a call, of calls that one CUDA graph makes one after another."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:2]:  # what is compiled or allocated once
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    taken: list[float] = []
    for _ in range(REPLAYS):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(1e3 * begin.elapsed_time(end) / len(calls))
    return statistics.median(taken)


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 1 GiB on the device reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    us = graph_us([lambda: target.copy_(source)] * 8)
    return 2 * source.nbytes / (1e-6 * us)
