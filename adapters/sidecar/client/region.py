"""Shared memory that an engine writes its logits into."""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.adapters.sidecar.shared_memory import FOLDER

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Region:
    """A file in /dev/shm, of mode 0600, mapped here. The server opens it and reads it by copies.

    key: its name, until `unlink`. array: what is written to, [rows, size].
    Raises OSError where there is no room.
    """

    def __init__(self, rows: int, size: int, dtype: np.dtype[Any]) -> None:
        self.key = f"midstream-{secrets.token_hex(16)}"
        self.size_bytes = rows * size * dtype.itemsize
        path = f"{FOLDER}/{self.key}"
        descriptor = os.open(path, _FLAGS, 0o600)
        # Memory that nobody gives up would stay until the machine restarts.
        self._unlink = weakref.finalize(self, os.unlink, path)
        try:
            # Without it a full /dev/shm is a SIGBUS at the first write.
            os.posix_fallocate(descriptor, 0, self.size_bytes)
            self._map = mmap.mmap(descriptor, self.size_bytes)
        except BaseException:
            self.unlink()
            raise
        finally:
            os.close(descriptor)
        self.array: npt.NDArray[Any] = np.frombuffer(self._map, dtype).reshape(rows, size)
        self._begin: int = self.array.ctypes.data

    def place(self, logits: npt.NDArray[Any]) -> int:
        """Where in the region the logits lie, in bytes. They are copied there unless they do.

        logits: [R, size], of the region's type, R at most its rows.
        """
        array = self.array
        offset: int = logits.__array_interface__["data"][0] - self._begin
        inside = 0 <= offset and offset + logits.nbytes <= array.nbytes
        if inside and logits.flags.c_contiguous:
            return offset
        array[: len(logits)] = logits
        return 0

    def unlink(self) -> None:
        """Take the name away; who has opened the file keeps it. Twice does no harm."""
        self._unlink()

    def close(self) -> None:
        """Take the name away, and the memory once no array of it is left."""
        self.unlink()
        self.array = np.empty((0, 0), self.array.dtype)
