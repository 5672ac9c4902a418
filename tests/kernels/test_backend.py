"""Which implementation reads an array, and what the choice costs at import."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from midstream.kernels import backend
from midstream.kernels.backend import choose, like, mask_to_numpy, to_numpy


@pytest.fixture
def on_gpu() -> torch.Tensor:
    """A tensor that says it lies on a GPU, on a machine that has none."""
    with FakeTensorMode():
        return torch.empty(2, 3, device="cuda")


def test_the_kind_of_array_decides(on_gpu: torch.Tensor) -> None:
    assert choose(np.zeros(1)) == choose(torch.zeros(1)) == choose([1.0]) == "numpy"
    assert choose(on_gpu) == choose(on_gpu, "triton") == "triton"
    assert choose(on_gpu, "numpy") == "numpy"


@pytest.mark.parametrize("array", [np.zeros(1), torch.zeros(1)])
def test_triton_needs_a_gpu_or_its_interpreter(array: Any) -> None:
    with pytest.raises(ValueError, match=r"backend: got 'triton'.*TRITON_INTERPRET=1"):
        choose(array, "triton")


def test_an_unknown_backend() -> None:
    wrong: Any = "cuda"
    with pytest.raises(ValueError, match="backend: got 'cuda'; accepted: auto, numpy, triton"):
        choose(np.zeros(1), wrong)


def test_without_triton_one_line_is_logged(
    on_gpu: torch.Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    backend._has_triton.cache_clear()
    with caplog.at_level(logging.WARNING, logger="midstream"):
        assert [choose(on_gpu) for _ in range(3)] == ["numpy"] * 3
    assert [record.name for record in caplog.records] == ["midstream.kernels.backend"]
    backend._has_triton.cache_clear()


def test_tensors_are_read_without_a_copy() -> None:
    tensor = torch.zeros(3, 4, requires_grad=True)
    assert np.shares_memory(to_numpy(tensor), tensor.detach().numpy())
    words = torch.tensor([[-1, 5]], dtype=torch.int32)
    mask = mask_to_numpy(words)
    assert mask.dtype == np.uint32 and mask.tolist() == [[2**32 - 1, 5]]
    assert np.shares_memory(mask, words.numpy())
    # numpy has no bfloat16: each of its numbers is one of float32.
    small = torch.tensor([0.1, -3e38], dtype=torch.bfloat16)
    assert to_numpy(small).dtype == np.float32
    assert to_numpy(small).tolist() == small.tolist()


def test_results_are_of_the_kind_of_the_input() -> None:
    result = np.arange(3)
    assert like(np.zeros(1), result) is result
    tensor = like(torch.zeros(1), result)
    assert isinstance(tensor, torch.Tensor) and tensor.tolist() == [0, 1, 2]


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_of_the_numpy_kernels_loads_numpy_alone() -> None:
    """Every module of the folder, and a call."""
    code = (
        "import importlib, pkgutil, sys, midstream.kernels as k, numpy as np\n"
        "names = [m.name for m in pkgutil.iter_modules(k.__path__) if not m.ispkg]\n"
        "assert 'masked_sampling' in names\n"
        "for name in names: importlib.import_module(f'midstream.kernels.{name}')\n"
        "from midstream.kernels.masked_sampling import masked_sample\n"
        "masked_sample(np.zeros((1, 9), np.float32), None, np.zeros((1, 2)))\n"
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    loaded = set(_run(code).split())
    assert "numpy" in loaded
    assert not loaded & {"torch", "triton", "pydantic", "scipy", "transformers", "llguidance"}


def test_the_import_of_the_device_code_queries_no_driver() -> None:
    code = (
        "import importlib, pkgutil, midstream.kernels.triton as k, torch\n"
        "from triton.runtime import driver\n"
        "for m in pkgutil.iter_modules(k.__path__):\n"
        "    importlib.import_module(f'{k.__name__}.{m.name}')\n"
        "assert driver._default is None and driver._active is None\n"
        "assert not torch.cuda.is_initialized()\n"
        "print('quiet')"
    )
    assert _run(code).strip() == "quiet"
