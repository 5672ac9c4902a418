"""Compiled matchers, kept by constraint and vocabulary."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MATCHERS_KEPT = 64
"""Compiled matchers that are kept in a process."""


class BuiltOnce(Generic[K, V]):
    """The `capacity` values asked for last, each built once, however many threads ask for it.

    A failed build is not kept: everybody who waited for it gets its error, the next one builds
    again.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._values: OrderedDict[K, Future[V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K, build: Callable[[], V]) -> V:
        """The value of `key`; `build` is called, outside of any lock, where there is none."""
        with self._lock:
            value = self._values.get(key)
            mine = value is None
            if value is None:
                value = self._values[key] = Future()
                while len(self._values) > self._capacity:
                    self._values.popitem(last=False)
            else:
                self._values.move_to_end(key)
        if mine:
            self._build(key, value, build)
        return value.result()

    def _build(self, key: K, value: Future[V], build: Callable[[], V]) -> None:
        try:
            value.set_result(build())
        except BaseException as error:
            with self._lock:
                if self._values.get(key) is value:
                    del self._values[key]
            value.set_exception(error)

    def clear(self) -> None:
        """Forget every value."""
        with self._lock:
            self._values.clear()


_matchers: BuiltOnce[tuple[Hashable, str], Matcher] = BuiltOnce(MATCHERS_KEPT)


def compiled(constraint: Hashable, vocabulary: Vocabulary, build: Callable[[], Matcher]) -> Matcher:
    """The matcher of (constraint, the vocabulary's fingerprint), from `build` if it is not kept."""
    return _matchers.get((constraint, vocabulary.fingerprint), build)


def clear_matchers() -> None:
    """Forget every compiled matcher; those in use live on."""
    _matchers.clear()
