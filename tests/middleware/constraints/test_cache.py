"""The cache of compiled matchers: bounded, and one compilation for all who wait for it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from midstream.middleware.constraints import Grammar, JsonSchema, cache
from midstream.middleware.constraints.cache import BuiltOnce
from midstream.middleware.vocabulary import Vocabulary


def test_the_last_ones_asked_for_are_kept() -> None:
    values: BuiltOnce[int, list[int]] = BuiltOnce(3)
    first = {key: values.get(key, lambda: [key]) for key in range(3)}  # noqa: B023
    assert values.get(0, list) is first[0]
    values.get(3, lambda: [3])
    assert len(values) == 3
    assert values.get(0, list) is first[0]
    assert values.get(2, list) is first[2]
    assert values.get(1, lambda: [9]) == [9]
    values.clear()
    assert len(values) == 0


def test_many_threads_build_once() -> None:
    values: BuiltOnce[str, object] = BuiltOnce(4)
    built: list[int] = []
    barrier = threading.Barrier(8)

    def build() -> object:
        time.sleep(0.05)
        built.append(threading.get_ident())
        return object()

    def ask(_: int) -> object:
        barrier.wait(timeout=30)
        return values.get("key", build)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert len(built) == 1
    assert all(value is found[0] for value in found)


def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    values: BuiltOnce[str, int] = BuiltOnce(4)
    tries: list[int] = []
    barrier = threading.Barrier(4)

    def build() -> int:
        time.sleep(0.05)
        tries.append(1)
        raise ValueError("no")

    def ask(_: int) -> str:
        barrier.wait(timeout=30)
        with pytest.raises(ValueError, match="no"):
            values.get("key", build)
        return "refused"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["refused"] * 4
    assert len(tries) == 1
    assert values.get("key", lambda: 7) == 7


def test_a_key_may_be_asked_for_while_another_is_built() -> None:
    values: BuiltOnce[str, int] = BuiltOnce(4)
    assert values.get("outer", lambda: values.get("inner", lambda: 3) + 1) == 4


def test_matchers_are_kept_by_constraint_and_vocabulary(small_vocabulary: Vocabulary) -> None:
    same = Vocabulary(
        small_vocabulary.token_bytes,
        eos_ids=small_vocabulary.eos_ids,
        special_ids=small_vocabulary.special_ids,
    )
    other = Vocabulary([*small_vocabulary.token_bytes, b"more"], eos_ids=small_vocabulary.eos_ids)
    schema = JsonSchema({"type": "array", "maxItems": 3})
    matcher = schema.compile(small_vocabulary)
    assert schema.compile(same) is matcher
    assert JsonSchema({"type": "array", "maxItems": 3}).compile(same) is matcher
    assert schema.compile(other) is not matcher
    assert JsonSchema({"type": "array", "maxItems": 4}).compile(same) is not matcher
    cache.clear_matchers()
    assert schema.compile(same) is not matcher


def test_the_number_of_matchers_is_bounded(small_vocabulary: Vocabulary) -> None:
    cache.clear_matchers()
    first: Any = Grammar('start: "a"').compile(small_vocabulary)
    for index in range(cache.MATCHERS_KEPT):
        Grammar(f'start: "{index}"').compile(small_vocabulary)
    assert len(cache._matchers) == cache.MATCHERS_KEPT
    assert Grammar('start: "a"').compile(small_vocabulary) is not first
    assert first.allows(first.start(), [small_vocabulary.token_bytes.index(b"a")]).all()
