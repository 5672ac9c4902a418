"""The part of `benchmarks.kernels` that needs a GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_timing import buffers_needed, copy_bandwidth, graph_us
from benchmarks.kernel_cases import Case, make_case, ours, torch_pipeline
from benchmarks.report import Cell, Table
from benchmarks.split_kernels import split_pipeline
from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import MaskedSample, masked_sample

SIZES = (128_256, 151_936)
TARGETS_US = {"bf16": {1: 8, 8: 8, 32: 8, 256: 40}, "fp32": {256: 45}}
"""By precision and B, for an H200."""

TOLERANCE = 2e-6
CHECKED = ((5, 128_256, torch.float32), (5, 50_257, torch.bfloat16), (3, 151_936, torch.float16))
FIELDS = [field.name for field in dataclasses.fields(MaskedSample)]


def flashinfer(case: Case) -> Tensor:
    """The token alone: FlashInfer has no mask and gives no masses, so torch masks before it."""
    from flashinfer.sampling import sampling_from_logits  # type: ignore[import-not-found]

    logits = case.logits * (1.0 / case.temperature)[:, None]
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = ((case.mask[:, :, None] >> bits) & 1).bool().flatten(1)[:, : logits.shape[1]]
    tokens: Tensor = sampling_from_logits(logits.masked_fill(~allowed, float("-inf")))
    return tokens


def pipelines() -> dict[str, Callable[[Case], Any]]:
    """What is timed beside ours, by the heading of its column."""
    found: dict[str, Callable[[Case], Any]] = {
        "torch": torch_pipeline,
        "split, token alone": lambda case: split_pipeline(case, masses=False),
        "split, masses too": lambda case: split_pipeline(case, masses=True),
    }
    if importlib.util.find_spec("flashinfer") is not None:
        found["FlashInfer, token alone"] = flashinfer
    return found


def check() -> tuple[Table, bool]:
    """Whether the kernels give on this card what they must."""
    rows = [_parity(*shape) for shape in CHECKED] + [_batches(dtype) for dtype in (0, 1)]
    passed = all(row[-1] == "yes" for row in rows)
    return Table("Checks", ["check", "found", "passed"], rows), passed


def _parity(batch: int, size: int, dtype: torch.dtype) -> list[Cell]:
    case = make_case(batch, size, dtype, "cuda")
    on_gpu = ours(case)
    seed, sequence, position = (
        each.cpu().numpy() for each in (case.seed, case.sequence, case.position)
    )
    on_host = masked_sample(
        case.logits.float().cpu().numpy(),
        case.mask.cpu().numpy().view(np.uint32),
        Keys(seed, sequence, position, 0),
        temperature=case.temperature.cpu().numpy(),
    )
    others = int((on_gpu.token.cpu().numpy() != on_host.token).sum())
    errors = [
        float(np.abs(getattr(on_gpu, name).cpu().numpy() - getattr(on_host, name)).max())
        for name in ("log_p", "log_weight")
    ]
    found = f"{others} other tokens, log p off by {errors[0]:.1e}, log weight by {errors[1]:.1e}"
    name = f"numpy gives the same, B = {batch}, V = {size}, {dtype}"
    return [name, found, _yes(others == 0 and max(errors) <= TOLERANCE)]


def _batches(which: int) -> list[Cell]:
    """Every row of 256, in other batches and at other places: the same bits?"""
    dtype = (torch.bfloat16, torch.float32)[which]
    case = make_case(256, SIZES[0], dtype, "cuda")
    whole = ours(case)
    different = 0
    for batch in (1, 7, 64, 256):
        order = torch.randperm(256, device="cuda")[:batch]
        part = ours(Case(*(getattr(case, f.name)[order] for f in dataclasses.fields(Case))))
        for name in FIELDS:
            here, there = getattr(part, name), getattr(whole, name)[order]
            different += int((here != there).sum())
    found = f"{different} numbers differ"
    return [f"rows are the same in batches of 1, 7, 64, 256, {dtype}", found, _yes(not different)]


def _yes(passed: bool) -> str:
    return "yes" if passed else "NO"


def measure(batches: Sequence[int], dtypes: Mapping[str, torch.dtype]) -> list[Table]:
    """A table for each vocabulary and precision."""
    bandwidth = copy_bandwidth()
    return [
        _table(size, name, dtype, batches, bandwidth)
        for size in SIZES
        for name, dtype in dtypes.items()
    ]


def _table(
    size: int, name: str, dtype: torch.dtype, batches: Sequence[int], bandwidth: float
) -> Table:
    others = pipelines()
    rows: list[list[Cell]] = []
    for batch in batches:
        first = make_case(batch, size, dtype, "cuda")
        more = range(1, buffers_needed(first.nbytes))
        cases = [first, *(make_case(batch, size, dtype, "cuda", number=n) for n in more)]
        floor_us = 1e6 * first.nbytes / bandwidth
        ours_us = _timed(ours, cases)
        theirs = [_timed(pipeline, cases) for pipeline in others.values()]
        rows.append([
            batch, f"{first.nbytes / 1e6:.2f}", floor_us, ours_us,
            f"{100 * floor_us / ours_us:.0f} %", TARGETS_US[name].get(batch, ""),
            *(f"{us:,.1f} ({us / ours_us:.1f}x)" for us in theirs),
        ])  # fmt: skip
    columns = [
        "B",
        "MB",
        "floor us",
        "ours us",
        "% floor",
        "target us",
        *(f"{n} us" for n in others),
    ]
    title = f"V = {size}, {name}; floors at {bandwidth / 1e12:.2f} TB/s, a copy on this card"
    return Table(title, columns, rows)


def _timed(pipeline: Callable[[Case], Any], cases: Sequence[Case]) -> float:
    return graph_us([partial(pipeline, case) for case in cases])
