"""What was drawn at each position of each request, kept where the engine runs.

A record stands for one (key, sequence, position); writing it again overwrites it. Nothing is added
up here: after a preemption a request comes back with its old outputs, and a token that was drawn
may be thrown away. Who reads sums over the positions that the response holds.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from midstream.middleware.draw import Status

KEYS = 16_384
RECORDS = 4_000_000
SECONDS = 3600.0


Place = tuple[str, int, int]
"""Key, sequence and position of a record."""


@dataclass(frozen=True, slots=True)
class Record:
    """One draw.

    log_weight: of this token, nats; NaN where it is not known. child: which of `n` texts it is of.
    """

    token: int
    log_weight: float
    status: Status
    checks: int
    reason: str = ""
    child: int = 0


@dataclass(slots=True)
class _Entry:
    born: float
    positions: dict[tuple[int, int], Record] = field(default_factory=dict)


class Records:
    """Records of the latest requests: at most `keys` of them, `records` in all, for `seconds`.

    The oldest requests go first.
    """

    def __init__(
        self,
        keys: int = KEYS,
        records: int = RECORDS,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys, self._records, self._seconds = keys, records, seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def write(self, drawn: Iterable[tuple[Place, Record]]) -> None:
        """Put records in their places: those of one step together."""
        now = self._clock()
        with self._lock:
            for (key, sequence, position), record in drawn:
                entry = self._entries.get(key)
                if entry is None:
                    entry = self._entries[key] = _Entry(now)
                self._count += (sequence, position) not in entry.positions
                entry.positions[sequence, position] = record
            self._forget()

    def read(self, key: str) -> Mapping[tuple[int, int], Record] | None:
        """The records of a key by (sequence, position); None where there are none (any more)."""
        with self._lock:
            self._forget()
            entry = self._entries.get(key)
            return None if entry is None else dict(entry.positions)

    def _forget(self) -> None:
        oldest_allowed = self._clock() - self._seconds
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            alone = len(self._entries) == 1
            full = len(self._entries) > self._keys or self._count > self._records
            if entry.born >= oldest_allowed and (alone or not full):
                return
            del self._entries[key]
            self._count -= len(entry.positions)


RECORDS_HERE = Records()
"""Those of this process: the processor writes them, the worker extension reads them."""
