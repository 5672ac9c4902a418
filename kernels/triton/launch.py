"""What the wrappers share: checks of their arguments, temperatures, noise, and the variants that
are compiled ahead of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from midstream.kernels.backend import is_tensor
from midstream.kernels.blocks import BLOCK
from midstream.kernels.keys import Keys
from midstream.kernels.numpy_inputs import numpy_temperatures

FP_FUSION = True
"""Passed at every launch: part of a kernel's version, and Triton is about to change its default."""

Tensor: TypeAlias = torch.Tensor

_LOGITS = (torch.bfloat16, torch.float16, torch.float32)
_TEMPERATURES = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which a kernel is compiled, for tests that have no GPU.

    A file of kernels lists its own in a tuple `VARIANTS`, which the tests collect.

    kernel: the `triton.jit` function. signature: Triton's type of each argument, in their order,
        ":16" behind it where it is a multiple of 16; "constexpr" for what `constexprs` holds and
        for a pointer that is not given; a tuple of these for a tuple.
    tokens: how many logits a program reads, for the trend of instructions a logit; 0 for none.
    wide: whether the logits must come in by 128-bit loads.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str | tuple[str, ...]]
    constexprs: Mapping[str, Any]
    num_warps: int
    tokens: int = 0
    wide: bool = False

    def compile(self, capability: int) -> Any:
        """Triton's compiled kernel for a CUDA capability (80, 90, ...); needs no GPU."""
        types: dict[str, str | tuple[str, ...]] = {}
        parts: tuple[str, ...]
        paths: list[tuple[int, ...]]
        constants: dict[tuple[int, ...], Any] = {}
        attributes: dict[tuple[int, ...], list[list[Any]]] = {}
        for i, (name, kind) in enumerate(self.signature.items()):
            if isinstance(kind, str):
                parts, paths = (kind,), [(i,)]
                types[name] = kind.removesuffix(":16")
            else:
                parts, paths = kind, [(i, j) for j in range(len(kind))]
                types[name] = tuple(part.removesuffix(":16") for part in kind)
            for part, path in zip(parts, paths, strict=True):
                if part == "constexpr":
                    constants[path] = self.constexprs.get(name)
                elif part.endswith(":16"):
                    attributes[path] = [["tt.divisibility", 16]]
        return triton.compile(
            ASTSource(self.kernel, types, constants, attributes),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": self.num_warps, "enable_fp_fusion": FP_FUSION},
        )


@dataclass(frozen=True, slots=True)
class Temperature:
    """Temperatures of R rows: `inverse`, one 1 / T for all of them, 0 for T = 0; or `of_row`, the
    temperatures as float32 or float64 [R].
    """

    inverse: float
    of_row: Tensor | None


@dataclass(frozen=True, slots=True)
class Noise:
    """Where the uniforms of `rows` times `count` draws come from: a tensor, or keys."""

    rows: int
    count: int
    uniforms: Tensor | None = None
    seed: Tensor | None = None
    sequence: Tensor | None = None
    position: Tensor | None = None
    purpose: int = 0
    first: int = 0

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As kernels take them: see `load_uniforms`."""
        return self.uniforms, self.seed, self.sequence, self.position, self.purpose, self.first


def as_temperature(temperature: Any, logits: Tensor) -> Temperature:
    """Of a number, an array [R], or a tensor on the device of the logits.

    The host does not read such a tensor: what is no temperature in it makes its row NOT_FINITE.
    """
    rows = len(logits)
    if is_tensor(temperature) and temperature.device == logits.device:
        shape = tuple(temperature.shape)
        if temperature.dtype not in _TEMPERATURES or shape not in ((), (rows,)):
            got = f"{temperature.dtype} {list(shape)}"
            accepted = f"a number, or float32 or float64 [{rows}]"
            raise ValueError(f"temperature: got {got}; accepted: {accepted}")
        return Temperature(1.0, temperature.expand(rows).contiguous())
    values = numpy_temperatures(temperature, rows)
    if np.ndim(temperature) == 0:
        return Temperature(1.0 / float(temperature) if temperature else 0.0, None)
    return Temperature(1.0, torch.from_numpy(values.copy()).to(logits.device))


def as_noise(noise: Any, logits: Tensor, rows: int, count: int | None) -> Noise:
    """Of `Keys`, or of uniforms [rows, count, 2] ([rows, 2] where count is 1); None for any count,
    which keys do not have.
    """
    if isinstance(noise, Keys):
        if len(noise) != rows:
            raise ValueError(f"noise: got {len(noise)} keys; accepted: {rows}")
        if count is None:
            raise ValueError("count: got None with Keys; accepted: how many draws to make")
        seed, sequence, position = (
            to_device(each, logits) for each in (noise.seed, noise.sequence, noise.position)
        )
        return Noise(rows, count, None, seed, sequence, position, noise.purpose, noise.first)
    uniforms = to_device(noise, logits)
    if uniforms.ndim == 2 and count == 1:
        uniforms = uniforms[:, None]
    got = uniforms.shape
    wrong = uniforms.ndim != 3 or got[0] != rows or got[2] != 2 or count not in (None, got[1])
    if wrong or uniforms.dtype not in (torch.float32, torch.float64):
        wanted = [rows, 2] if count == 1 else [rows, "k" if count is None else count, 2]
        raise ValueError(
            f"noise: got {uniforms.dtype} {list(got)}; accepted: Keys, or float32 or "
            f"float64 {wanted}"
        )
    return Noise(rows, got[1], uniforms.contiguous())


def to_device(array: Any, logits: Tensor) -> Tensor:
    """A small array as a tensor where the logits are; uint64 as the int64 of the same bits."""
    if is_tensor(array):
        tensor: Tensor = array
    else:
        values = np.asarray(array)
        tensor = torch.from_numpy(values.astype(np.int64) if values.dtype.kind in "iu" else values)
    return tensor.to(logits.device).contiguous()


def on_device_of(logits: Tensor) -> AbstractContextManager[Any]:
    """Launches go to the device of the logits; does nothing for those of the CPU."""
    return torch.cuda.device_of(logits)  # type: ignore[no-untyped-call]


def check_logits(logits: Tensor) -> None:
    """bfloat16, float16 or float32 [R, V], rows without gaps, at any distance from each other."""
    if logits.ndim != 2 or logits.dtype not in _LOGITS:
        raise ValueError(
            f"logits: got {logits.dtype} {list(logits.shape)}; accepted: bfloat16, float16 or "
            "float32 [R, V]"
        )
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(f"logits: got strides {logits.stride()}; accepted: (any, 1)")


def check_mask(mask: Tensor | None, logits: Tensor) -> None:
    """None, or int32 words [R, W] on the device of the logits, whose bits count."""
    if mask is None:
        return
    rows = logits.shape[0]
    if mask.dtype != torch.int32 or mask.ndim != 2 or mask.shape[0] != rows:
        raise ValueError(f"mask: got {mask.dtype} {list(mask.shape)}; accepted: int32 [{rows}, W]")
    if mask.device != logits.device:
        raise ValueError(f"mask: got a tensor on {mask.device}; accepted: on {logits.device}")
    if mask.shape[1] > 1 and mask.stride(1) != 1:
        raise ValueError(f"mask: got strides {mask.stride()}; accepted: (any, 1)")


def mask_arguments(mask: Tensor | None) -> tuple[Tensor | None, int, int]:
    """As kernels take it: pointer, stride of a row, words of a row."""
    return (None, 0, 0) if mask is None else (mask, mask.stride(0), mask.shape[1])


def row_arguments(
    logits: Tensor, mask: Tensor | None, temperature: Temperature, partials: Tensor
) -> tuple[Any, ...]:
    """The first ten arguments of the kernels that draw from rows whose blocks were summed."""
    given = logits, logits.stride(0), logits.shape[1], *mask_arguments(mask)
    return *given, temperature.of_row, temperature.inverse, partials, partials.shape[2]


def block_count(size: int) -> int:
    """Blocks of a row of `size` tokens, at least 1."""
    return max(-(-size // BLOCK), 1)
