"""Which implementation an array is for, and the way of its results back to the kind of array it is.

Nothing here imports torch or triton unless a tensor was given, and nothing queries a device.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Backend = Literal["auto", "numpy", "triton"]
"""`auto`: by the kind of array, see `choose`. The others force one implementation."""

BACKENDS = ("auto", "numpy", "triton")

_log = logging.getLogger(__name__)


def is_tensor(array: Any) -> bool:
    """Whether it is a torch tensor; False while nobody has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def choose(array: Any, backend: Backend = "auto") -> Literal["numpy", "triton"]:
    """The implementation that reads `array`.

    A numpy array and a CPU tensor go to numpy, the tensor by a view (bfloat16 and float16 are
    converted). A CUDA tensor goes to Triton, or to numpy by a copy where Triton is not installed,
    which is logged once. `triton` takes a CPU tensor under TRITON_INTERPRET=1 alone.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}; accepted: {', '.join(BACKENDS)}")
    if backend == "numpy":
        return "numpy"
    on_device = is_tensor(array) and array.device.type == "cuda"
    if backend == "auto":
        return "triton" if on_device and _has_triton() else "numpy"
    if on_device or (is_tensor(array) and interpreted()):
        return "triton"
    kind = f"a tensor on {array.device}" if is_tensor(array) else f"a {type(array).__name__}"
    raise ValueError(
        f"backend: got 'triton' for {kind}; accepted: a CUDA tensor, or a CPU tensor with "
        "TRITON_INTERPRET=1 in the environment before triton is imported"
    )


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


@cache
def _has_triton() -> bool:
    if importlib.util.find_spec("triton") is not None:
        return True
    _log.warning("triton is not installed: logits on a GPU are copied to the host for numpy")
    return False


def to_numpy(array: Any) -> npt.NDArray[Any]:
    """A view of a CPU tensor, a copy of one on a device, anything else as numpy has it.

    bfloat16 tensors are converted to float32, numpy has no such type.
    """
    if not is_tensor(array):
        return np.asarray(array)
    host = array.detach().cpu()
    if host.dtype == sys.modules["torch"].bfloat16:
        host = host.float()
    values: npt.NDArray[Any] = host.numpy()
    return values


def mask_to_numpy(mask: Any) -> npt.NDArray[Any]:
    """A mask as numpy: the int32 words of a tensor are read as uint32, bit for bit."""
    words = to_numpy(mask)
    return words.view(np.uint32) if is_tensor(mask) and words.dtype == np.int32 else words


def like(x: Any, array: npt.NDArray[Any]) -> Any:
    """A result as the kind of array that `x` is: numpy, or a tensor on the device of `x`."""
    if not is_tensor(x):
        return array
    return sys.modules["torch"].from_numpy(array).to(x.device)
