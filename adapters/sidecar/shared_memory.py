"""Regions of shared memory that a client writes and this process reads, copy by copy.

A region is a file in /dev/shm. It is opened once and never mapped: a client that truncates a file
which somebody maps kills the reader with SIGBUS, and what reads a row twice would see two rows if
the client wrote between. `os.preadv` copies 513 kB in some tens of microseconds.

Whose file it may be: of this process's own user. The user at the other end of a connection cannot
be asked for (gRPC has no SO_PEERCRED), so regions are taken over Unix sockets alone, whose folder
of mode 0700 lets nobody in but that user (and root).
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from midstream.middleware.errors import InputError

FOLDER = "/dev/shm"

PLACE = "step.logits.shared_memory"

_KEY = re.compile(r"[A-Za-z0-9_-]{1,200}", re.ASCII)
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not block


@dataclass(frozen=True, slots=True)
class RegionOf:
    """A region as a handshake names it. name: in the steps. key: the file's name."""

    name: str
    key: str
    size_bytes: int


class Regions:
    """The regions of one stream, open until `close`.

    most_bytes: of one region. most: how many. folder: for tests.
    Raises InputError for a name or key that is none, a file that is not there, is no regular file,
    is another user's, or is smaller than it was said to be.
    """

    def __init__(
        self,
        regions: Iterable[RegionOf],
        *,
        most: int,
        most_bytes: int,
        folder: str = FOLDER,
    ) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._open: dict[str, tuple[int, int]] = {}  # name -> descriptor, size
        self._buffer = memoryview(b"")
        self._lock = threading.Lock()
        try:
            for i, region in enumerate(regions):
                field = f"handshake.regions[{i}]"
                if i == most:
                    raise InputError("handshake.regions", f"more than {most}", f"at most {most}")
                if not _KEY.fullmatch(region.name) or region.name in self._open:
                    accepted = "a name of letters, digits, _ and -, that no other region has"
                    raise InputError(f"{field}.name", region.name, accepted)
                self._open[region.name] = self._opened(region, field)
        except BaseException:
            self.close()
            raise

    def read(self, region: str, offset: int, size_bytes: int) -> memoryview:
        """A copy of a part of a region, good until the next one.

        Raises InputError for a region that was not registered, and for bytes that it does not, or
        no longer, have.
        """
        if len(self._buffer) < size_bytes:
            self._check_place(region, offset, size_bytes)
            self._buffer = memoryview(bytearray(size_bytes))
        view = self._buffer[:size_bytes]
        self.read_into(region, offset, [view])
        return view

    def read_into(self, region: str, offset: int, parts: Sequence[Any]) -> None:
        """Copy what lies from `offset` on into buffers, one after another. Raises as `read`."""
        views = [memoryview(part).cast("B") for part in parts]
        self._check_place(region, offset, sum(map(len, views)))
        with self._lock:  # `close` must not free a number that is being read from
            for view in views:
                if self._copy(region, offset, view) < len(view):
                    accepted = "one that keeps its size"
                    raise InputError(f"{PLACE}.region", "one that became shorter", accepted)
                offset += len(view)

    def _check_place(self, region: str, offset: int, size_bytes: int) -> None:
        if region not in self._open:
            raise InputError(f"{PLACE}.region", region, "one of the handshake's regions")
        if offset + size_bytes > self._open[region][1]:
            got = f"{offset} to {offset + size_bytes}"
            accepted = f"bytes from 0 to {self._open[region][1]}"
            raise InputError(f"{PLACE}.offset", got, accepted)

    def _copy(self, region: str, offset: int, view: memoryview) -> int:
        """How many bytes there were."""
        done = 0
        while region in self._open and done < len(view):
            count = os.preadv(self._open[region][0], [view[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def close(self) -> None:
        """Close the files. Doing so twice does no harm."""
        with self._lock:
            while self._open:
                _, (descriptor, _) = self._open.popitem()
                os.close(descriptor)

    def _opened(self, region: RegionOf, field: str) -> tuple[int, int]:
        if not _KEY.fullmatch(region.key):
            accepted = "a file's name of letters, digits, _ and -"
            raise InputError(f"{field}.key", region.key, accepted)
        if not 0 < region.size_bytes <= self._most_bytes:
            accepted = f"from 1 to {self._most_bytes}"
            raise InputError(f"{field}.size_bytes", region.size_bytes, accepted)
        try:
            descriptor = os.open(f"{self._folder}/{region.key}", _FLAGS)
        except OSError as error:
            reason = (error.strerror or "it cannot be opened").lower()
            accepted = f"the name of a file in {FOLDER} ({reason})"
            raise InputError(f"{field}.key", region.key, accepted) from None
        try:
            self._check(descriptor, region, field)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, region.size_bytes

    def _check(self, descriptor: int, region: RegionOf, field: str) -> None:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{field}.key", region.key, "a regular file")
        if found.st_uid != os.geteuid():
            accepted = "a file of the user that the server runs as"
            raise InputError(f"{field}.key", region.key, accepted)
        if found.st_size < region.size_bytes:
            accepted = f"at most {found.st_size}, the size of the file"
            raise InputError(f"{field}.size_bytes", region.size_bytes, accepted)
