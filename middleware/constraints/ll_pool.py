"""The engines of one matcher: as many as its live branches are worth, within a memory bound."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from midstream.middleware.constraints.ll_engine import NOTHING_CONTINUES, Engine, Node

if TYPE_CHECKING:
    from llguidance import LLMatcher

T = TypeVar("T")

POOL_BYTES = 64 << 20
"""What the engines of a matcher may weigh together, by estimate."""

POOL_ENGINES = 256
"""At most so many engines for each matcher."""

BYTES_A_TOKEN = 1200.0
"""Consuming one token takes about as long as copying so much of an engine (0.4 us)."""

_LOOK_BACK = 32


class EngineError(Exception):
    """Nothing can go on: no token is left, or llguidance met a limit, with a new lexer too.

    reached: whether an engine could at least stand where it was sent.
    """

    def __init__(self, reason: str, reached: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reached = reached


class EnginePool:
    """Gives engines to nodes.

    The nearest engine is moved. What is gone back and gone again for that is its debt; a debt
    larger than the price of a copy buys one, so that branches that live long have an engine each
    and others share. Beyond POOL_BYTES or POOL_ENGINES the engine used longest ago goes.

    One lock for all: copies of a llguidance matcher share its lexer, and one that waits for it does
    so with the interpreter's lock held. For the same reason what the lexer runs out of, fuel or
    states, is out for all engines: then the grammar is compiled anew.
    """

    def __init__(
        self, matcher: LLMatcher, again: Callable[[], LLMatcher], root: Node, size: int
    ) -> None:
        """matcher: at its start, not used otherwise. again: compiles another. size: V."""
        self._root, self._size = root, size
        self._again = again
        self._start: Engine | None = self._at_start(matcher)
        self._engines: dict[Engine, None] = {}  # the one used longest ago is the first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._engines)

    def run(self, node: Node, action: Callable[[Engine], T]) -> T:
        """What `action` gives on an engine at `node`. EngineError where it fails for good.

        Where it fails for what the lexer had to do before, it is tried again with a new one.
        """
        with self._lock:
            for last in (False, True):
                engine = self._waiting(node) or self._fitting(node)
                reached = engine.nodes[-1] is node or engine.go(node)
                if reached:
                    result = action(engine)
                    if not engine.matcher.is_error():
                        self._used(engine)
                        return result
                reason = engine.failure()
                self._drop(engine)
                if reason == NOTHING_CONTINUES or reason.lower().startswith("parser error"):
                    break
                self._start = None
                if last:
                    break
            raise EngineError(reason, reached)

    def _waiting(self, node: Node) -> Engine | None:
        """The engine that stands where the text of `node` has its last token to come: of a text
        that goes on, the fitting one, found at once.
        """
        engine = node.parent.engine if node.parent is not None else None
        ready = engine is not None and engine.nodes and engine.nodes[-1] is node.parent
        return engine if ready and self._start is not None else None

    def _fitting(self, node: Node) -> Engine:
        """The nearest engine, or a copy of it where its debt has grown large enough."""
        if self._start is None:
            for engine in list(self._engines):
                self._drop(engine)
            self._start = self._at_start(self._again())
        found = _near(node) or _nearest(node, self._engines)
        if found is None:
            return self._add(self._start.copy())
        engine, shared = found
        back = len(engine.nodes) - 1 - shared
        waste = back + max(0, node.depth - shared - 1)
        price = engine.weight_bytes / BYTES_A_TOKEN
        if not back or engine.debt + waste <= 4 + price:
            engine.debt += waste
            return engine
        engine.debt = 0
        # Near the start it is cheaper to begin anew than to copy a long text.
        source = self._start if shared <= price else engine
        return self._add(source.copy())

    def _at_start(self, matcher: LLMatcher) -> Engine:
        return Engine(matcher, [self._root], self._size, 4096)

    def _used(self, engine: Engine) -> None:
        del self._engines[engine]
        self._engines[engine] = None
        if engine.weigh():
            self._shrink(engine)

    def _add(self, engine: Engine) -> Engine:
        self._engines[engine] = None
        self._root.engine = engine  # for `_near`: the last to be dropped
        self._shrink(engine)
        return engine

    def _drop(self, engine: Engine) -> None:
        del self._engines[engine]
        engine.drop()

    def _shrink(self, keep: Engine) -> None:
        """Drop the engines used longest ago. All are taken to become as heavy as the heaviest."""
        heaviest = max([engine.weight_bytes for engine in self._engines])
        room = max(2, min(POOL_ENGINES, int(POOL_BYTES / heaviest)))
        excess = len(self._engines) - room
        if excess > 0:
            others = (engine for engine in self._engines if engine is not keep)
            for engine in list(islice(others, excess)):
                self._drop(engine)


def _near(node: Node) -> tuple[Engine, int] | None:
    """An engine on the text of `node` or of a near ancestor, and that one's depth."""
    step: Node | None = node
    for _ in range(_LOOK_BACK):
        if step is None:
            return None
        if step.engine is not None and step.engine.stands_on(step):
            return step.engine, step.depth
        step = step.parent
    return None


def _nearest(node: Node, engines: Iterable[Engine]) -> tuple[Engine, int] | None:
    """The engine that shares the longest text with `node`, and the depth of that."""
    path = [node]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    path.reverse()
    shared = [(engine, _shared(engine.nodes, path)) for engine in engines]
    found = max(shared, key=lambda one: (one[1], -len(one[0].nodes)), default=None)
    if found is not None:
        path[found[1]].engine = found[0]  # for `_near`, next time
    return found


def _shared(nodes: list[Node], path: list[Node]) -> int:
    """Depth of the last node that two paths from the same start share."""
    low, high = 0, min(len(nodes), len(path)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if nodes[middle] is path[middle]:
            low = middle
        else:
            high = middle - 1
    return low
