"""Rows of logits off the wire, laid out as the kernels read them."""

from __future__ import annotations

import numpy as np

from midstream.adapters.sidecar.wire.tensors import (
    DTYPES,
    Array,
    Regions,
    array_from,
    check_tensor,
    shared_place,
)
from midstream.kernels.blocks import BLOCK
from midstream.proto.v1 import tensor_pb2 as pb


def padded_size(size: int) -> int:
    """Of a row, in whole blocks: a longer one than a block would be copied to be padded."""
    return size if size <= BLOCK else -(-size // BLOCK) * BLOCK


class StepRows:
    """Reads the steps of one stream, [rows, row_size] of the type `dtype`, into one buffer.

    What a row has beyond row_size is -inf. Logits in shared memory are copied once, to where they
    are read.
    """

    def __init__(self, row_size: int, dtype: int) -> None:
        self._row_size = row_size
        self._dtype = dtype
        stored = DTYPES[dtype]
        self._direct = stored.kind == "f" and stored.itemsize >= 4
        self._type = stored if self._direct else np.dtype(np.float32)
        self.width = padded_size(row_size)
        self._buffer: Array = np.empty((0, self.width), self._type)

    def read(self, tensor: pb.Tensor, regions: Regions | None, name: str, rows: int) -> Array:
        """[rows, width], float32 or float64, good until the next one.

        Raises InputError as `array_from` does.
        """
        shape = rows, self._row_size
        if self.width == self._row_size:
            return array_from(tensor, regions, name=name, dtype=self._dtype, shape=shape)
        if not self._direct or not tensor.HasField("shared_memory"):
            array = array_from(tensor, regions, name=name, dtype=self._dtype, shape=shape)
            into = self._rows(rows)
            into[:, : self._row_size] = array
            return into
        check_tensor(tensor, name, self._dtype, shape)
        known, place = shared_place(tensor, regions, name)
        into = self._rows(rows)
        known.read_into(place.region, place.offset, [row[: self._row_size] for row in into])
        return into

    def _rows(self, count: int) -> Array:
        if len(self._buffer) < count:
            self._buffer = np.full((count, self.width), -np.inf, self._type)
        return self._buffer[:count]
