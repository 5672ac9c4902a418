"""Arrays as messages: bytes with a type and a shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from midstream.middleware.errors import InputError
from midstream.proto.v1 import tensor_pb2 as pb

Array = npt.NDArray[Any]

MAX_DIMENSIONS = 8

DTYPES: Mapping[int, np.dtype[Any]] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_FLOAT64: np.dtype("<f8"),
    pb.DTYPE_FLOAT16: np.dtype("<f2"),
    pb.DTYPE_BFLOAT16: np.dtype("<u2"),
    pb.DTYPE_UINT32: np.dtype("<u4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
}
"""How the elements of each type lie in the bytes. numpy has no bfloat16: its bits are integers."""

_OF_NUMPY = {
    np.dtype("<f4"): pb.DTYPE_FLOAT32,
    np.dtype("<f8"): pb.DTYPE_FLOAT64,
    np.dtype("<f2"): pb.DTYPE_FLOAT16,
    np.dtype("<u4"): pb.DTYPE_UINT32,
    np.dtype("<i8"): pb.DTYPE_INT64,
}


class Regions(Protocol):
    """Shared memory that a client registered."""

    def read(self, region: str, offset: int, size_bytes: int) -> bytes | bytearray | memoryview:
        """A copy of a part of a region.

        Raises InputError for a region that is not registered and a part that it does not have.
        """

    def read_into(self, region: str, offset: int, parts: Sequence[Array]) -> None:
        """Copy what lies from `offset` on into arrays, one after another. Raises as `read` does."""


def array_from(
    tensor: pb.Tensor,
    regions: Regions | None,
    *,
    name: str,
    dtype: int,
    shape: Sequence[int],
) -> Array:
    """The array of a tensor, which the caller must not write to: [shape], of the type of `dtype`,
    float16 and bfloat16 as float32.

    regions: None where the stream has no shared memory. name: of the field, for errors.
    dtype, shape: what the tensor must have.
    Raises InputError for another type or shape, and for bytes that are too few or too many.
    """
    check_tensor(tensor, name, dtype, shape)
    stored = DTYPES[dtype]
    size_bytes = math.prod(shape) * stored.itemsize
    data = _bytes(tensor, regions, name, size_bytes)
    return _widened(np.frombuffer(data, stored), dtype).reshape(shape)


def check_tensor(tensor: pb.Tensor, name: str, dtype: int, shape: Sequence[int]) -> None:
    """InputError for a tensor of another type or shape."""
    if tensor.dtype != dtype:
        raise InputError(f"{name}.dtype", _dtype_name(tensor.dtype), _dtype_name(dtype))
    if list(tensor.shape) != list(shape):
        raise InputError(f"{name}.shape", list(tensor.shape[:MAX_DIMENSIONS]), str(list(shape)))


def shared_place(
    tensor: pb.Tensor, regions: Regions | None, name: str
) -> tuple[Regions, pb.SharedMemory]:
    """Where a tensor lies in a stream's regions. InputError where the stream has none."""
    if regions is None:
        accepted = "inline bytes: this stream registered no region in its handshake"
        raise InputError(f"{name}.shared_memory", "a place in a region", accepted)
    return regions, tensor.shared_memory


def _bytes(
    tensor: pb.Tensor, regions: Regions | None, name: str, size_bytes: int
) -> bytes | bytearray | memoryview:
    kind = tensor.WhichOneof("data")
    if kind == "inline":
        data = tensor.inline
        if len(data) != size_bytes:
            got, accepted = f"{len(data)} bytes", f"{size_bytes}, for that type and shape"
            raise InputError(f"{name}.inline", got, accepted)
        return data
    if kind is None:
        raise InputError(f"{name}.data", "nothing", "inline bytes, or shared memory")
    regions, place = shared_place(tensor, regions, name)
    return regions.read(place.region, place.offset, size_bytes)


def _widened(array: Array, dtype: int) -> Array:
    if dtype == pb.DTYPE_BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if dtype == pb.DTYPE_FLOAT16 else array


def tensor_of(array: Array, dtype: int | None = None) -> pb.Tensor:
    """The tensor of an array, its bytes inline.

    dtype: a type to send it as; by default its own.
    """
    if dtype is None:
        dtype = _OF_NUMPY[array.dtype.newbyteorder("<")]
    if dtype == pb.DTYPE_BFLOAT16:
        array = _bfloat16_bits(array)
    data = np.ascontiguousarray(array, DTYPES[dtype]).tobytes()
    return pb.Tensor(dtype=pb.Dtype.Name(dtype), shape=array.shape, inline=data)


def _bfloat16_bits(array: Array) -> Array:
    """Rounded to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def _dtype_name(dtype: int) -> str:
    return pb.Dtype.Name(dtype) if dtype in pb.Dtype.values() else f"type {dtype}"
