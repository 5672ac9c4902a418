"""llguidance's states as values: cheap to keep and to go on from, at any depth, on any thread."""

from __future__ import annotations

import gc
import json
import random
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest

from midstream.middleware.constraints import Grammar, JsonSchema, ll_pool
from midstream.middleware.constraints.lazy import LazyMatcher, compile_lazy
from midstream.middleware.vocabulary import Vocabulary

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "id": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["am", "the", "and"]}},
        },
        "required": ["name", "id", "tags"],
        "additionalProperties": False,
    },
}


def fresh_matcher(vocabulary: Vocabulary) -> LazyMatcher:
    """A matcher of its own, whose engines no other test has moved."""
    lark = "start: %json " + json.dumps({**SCHEMA, "x-guidance": {"whitespace_flexible": False}})
    return compile_lazy(lark, vocabulary, argument="schema", got=SCHEMA, accepted="")


def record(index: int) -> str:
    return json.dumps(
        {"name": f"the name {index}", "id": index, "tags": ["am", "and"]}, separators=(",", ":")
    )


@pytest.fixture
def matcher(gpt2_vocabulary: Vocabulary) -> LazyMatcher:
    return fresh_matcher(gpt2_vocabulary)


@pytest.fixture
def inside_a_string(
    matcher: LazyMatcher, spell: Any, replay: Any
) -> Callable[..., tuple[Any, list[int]]]:
    """inside_a_string(size, first): a state of `size` bytes, in a name, and the tokens to it."""

    def go(size: int, first: int = 0) -> tuple[Any, list[int]]:
        text = "[" + record(first)
        while len(text) < size:
            text += "," + record(first + len(text))
        path = spell(matcher.vocabulary, (text + ',{"name":"so').encode())
        return replay(matcher, tuple(path)), path

    return go


def median_us(work: Callable[[], object], repeats: int = 400) -> float:
    """Median processor time of one call on this thread: other load does not count."""
    taken = []
    for _ in range(repeats):
        began = time.thread_time_ns()
        work()
        taken.append(time.thread_time_ns() - began)
    return float(np.median(taken)) / 1e3


def children_of(matcher: LazyMatcher, state: Any, count: int, seed: int) -> list[Any]:
    """Children by different tokens."""
    allowed = np.flatnonzero(matcher.allows(state, range(len(matcher.vocabulary)))).tolist()
    tokens = random.Random(seed).sample(allowed, count)
    states = [matcher.advance(state, token) for token in tokens]
    assert all(one is not None for one in states)
    return states


def test_a_check_costs_the_same_at_any_depth(matcher: LazyMatcher, inside_a_string: Any) -> None:
    draw = random.Random(0)
    costs = {}
    for size in (50, 5000):
        state, path = inside_a_string(size)
        matcher.allows(state, [path[-1]])
        costs[size] = median_us(lambda at=state: matcher.allows(at, [draw.randrange(50_000)]))
        assert costs[size] < 20
    assert costs[5000] < 2 * costs[50] + 1


def test_keeping_a_state_and_going_on_from_it_is_cheap(
    matcher: LazyMatcher, inside_a_string: Any
) -> None:
    parents = [inside_a_string(5000, first) for first in (0, 7, 70)]
    token = parents[0][1][-1]

    def go_on() -> None:
        parents.append(parents.pop(0))  # another parent each time
        child = matcher.advance(parents[0][0], token)
        matcher.allows(child, [token])

    for _ in range(300):  # each branch comes to have an engine
        go_on()
    assert median_us(go_on) < 2 * 20  # an advance and a check
    kept: list[Any] = []
    assert median_us(lambda: kept.append(parents[0][0])) < 5


def test_a_thousand_children_that_diverge_take_little_memory(
    matcher: LazyMatcher, inside_a_string: Any
) -> None:
    state, path = inside_a_string(5000)
    matcher.allows(state, path[-1:])
    gc.collect()
    resident = psutil.Process().memory_info().rss
    tracemalloc.start()
    children = children_of(matcher, state, 1000, 0)
    made, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made < 400_000  # 400 bytes each
    draw = random.Random(1)
    for _ in range(3):
        for index, child in enumerate(children):
            options = [token for token in draw.sample(path, 25)]
            allowed = [
                t for t, yes in zip(options, matcher.allows(child, options), strict=True) if yes
            ]
            following = matcher.advance(child, draw.choice(allowed)) if allowed else child
            assert following is not None
            children[index] = following
    gc.collect()
    assert len({id(child) for child in children}) == 1000
    # A copy of llguidance's matcher for each would take 170 to 300 MB.
    assert psutil.Process().memory_info().rss - resident < 96 << 20
    assert len(matcher._pool) <= ll_pool.POOL_ENGINES


def test_advancing_changes_no_state(small_vocabulary: Vocabulary, mask_of: Any, walk: Any) -> None:
    matcher = fresh_matcher(small_vocabulary)
    paths = list(walk(matcher, 3, 60))
    states = [matcher.start()]
    for path in paths[1:]:
        states.append(matcher.advance(states[-1], path[-1]))
    before = [mask_of(matcher, state) for state in states]
    for state in states:
        for child in children_of(matcher, state, 1, 5):
            mask_of(matcher, child)
            matcher.accepts(child)
    for state, mask in zip(states, before, strict=True):
        state.mask = None
        assert np.array_equal(mask_of(matcher, state), mask)


def trace(matcher: Any, walk: Any, seed: int) -> list[tuple[tuple[int, ...], bytes, bool]]:
    """All that a walk sees."""
    seen = []
    state = matcher.start()
    for path in walk(matcher, seed, 40):
        if path:
            state = matcher.advance(state, path[-1])
        verdicts = matcher.allows(state, range(28, 58)).tobytes()
        seen.append((path, verdicts, matcher.accepts(state)))
    return seen


@pytest.mark.parametrize("engines", [ll_pool.POOL_ENGINES, 2])
def test_threads_see_what_one_thread_sees(
    engines: int, small_vocabulary: Vocabulary, walk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [trace(fresh_matcher(small_vocabulary), walk, seed) for seed in range(16)]
    monkeypatch.setattr(ll_pool, "POOL_ENGINES", engines)
    shared = fresh_matcher(small_vocabulary)
    barrier = threading.Barrier(8)

    def work(seed: int) -> list[Any]:
        if seed < 8:
            barrier.wait(timeout=60)
        return trace(shared, walk, seed)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))) == expected
    assert len(shared._pool) <= engines + 8


def test_branches_that_live_long_have_engines_and_the_oldest_goes(
    small_vocabulary: Vocabulary, walk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = fresh_matcher(small_vocabulary)
    branches = [list(walk(matcher, seed, 60))[-1] for seed in range(20)]
    states = [matcher.start()] * 20
    for monkey in (256, 4):
        monkeypatch.setattr(ll_pool, "POOL_ENGINES", monkey)
        states = [matcher.start()] * 20
        for step in range(60):
            for index, path in enumerate(branches):
                if step < len(path):
                    following = matcher.advance(states[index], path[step])
                    assert following is not None
                    states[index] = following
                    matcher.accepts(following)
        assert len(matcher._pool) <= monkey
        assert len(matcher._pool) > (4 if monkey == 256 else 1)


def test_the_pool_stays_within_its_bytes(
    small_vocabulary: Vocabulary, walk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ll_pool, "POOL_BYTES", 1 << 20)
    # The lexer of this pattern grows by 0.1 MB a step.
    matcher = Grammar(r"start: /(\w{1,200}\s){1,50}/").compile(small_vocabulary)
    states: list[Any] = [matcher.start()]
    for seed in range(8):
        state = matcher.start()
        for path in walk(matcher, seed, 40):
            state = matcher.advance(state, path[-1]) if path else state
        states.append(state)
    for state in states * 10:
        matcher.accepts(state)
        for child in children_of(matcher, state, 2, 0):
            matcher.allows(child, [65])
    heaviest = max(engine.weight_bytes for engine in matcher._pool._engines)
    assert len(matcher._pool) <= max(2, (1 << 20) / heaviest)


def test_equal_constraints_share_a_matcher(small_vocabulary: Vocabulary) -> None:
    assert JsonSchema(SCHEMA).compile(small_vocabulary) is JsonSchema(SCHEMA).compile(
        small_vocabulary
    )
