"""What the wrappers launch: arguments bound and compiled as a launch would, up to the launch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from midstream.kernels.filters import Filters
from midstream.kernels.keys import Keys
from midstream.kernels.triton.masked_sampling import masked_sample
from midstream.kernels.triton.without_replacement import draw_without_replacement


class _Driver:
    """A driver of an H200 that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Kernels in the order in which they were compiled to be launched."""
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", _Driver())
    yield kernels


def _names(kernels: list[Any]) -> list[str]:
    return [kernel.metadata.name for kernel in kernels]


def _inputs(rows: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(rows, -(-size // 32), dtype=torch.int32)
    return torch.zeros(rows, size, dtype=dtype), mask


def test_a_masked_sample_is_two_launches_with_wide_loads(launched: list[Any]) -> None:
    """One read of the logits, and one of a block of them."""
    logits, mask = _inputs(3, 128_256, torch.bfloat16)
    keys = Keys(*(torch.arange(3) for _ in range(3)), 0)
    masked_sample(logits, mask, keys, torch.ones(3), None, Filters())
    assert _names(launched) == ["_block_stats", "_pick"]
    assert all("ld.global.v4" in kernel.asm["ptx"] for kernel in launched)


@pytest.mark.parametrize(
    ("rows", "size", "dtype", "masked", "temperature"),
    [
        (1, 1, torch.float32, True, 1.0),  # of integers that are 1 Triton makes constants
        (2, 50_257, torch.float16, True, 0.0),
        (3, 2049, torch.bfloat16, False, torch.ones(3, dtype=torch.float64)),
    ],
)
def test_all_that_a_row_can_be_compiles(
    launched: list[Any], rows: int, size: int, dtype: torch.dtype, masked: bool, temperature: Any
) -> None:
    logits, mask = _inputs(rows, size, dtype)
    words = mask if masked else None
    index = np.zeros(2, np.int64)
    masked_sample(logits, words, np.zeros((2, 2)), temperature, index, Filters())
    draw_without_replacement(logits, words, np.zeros((rows, 1, 2)), None, temperature, None)
    assert _names(launched) == ["_block_stats", "_pick", "_block_stats", "_draw"]


def test_no_rows_launch_nothing(launched: list[Any]) -> None:
    logits, mask = _inputs(0, 100, torch.float32)
    masked_sample(logits, mask, np.zeros((0, 2)), 1.0, None, Filters())
    draw_without_replacement(logits, mask, np.zeros((0, 4, 2)), None, 1.0, None)
    assert launched == []
