"""One llguidance matcher that is moved between states: back to what they share, then forward.

llguidance 1.7 as it behaves, with `no_forcing` set: an error is for ever, so an engine that met one
is thrown away. Its lexer, which copies share, can run out of fuel without a word and then refuses
everything (`Engine.healthy`). Its mask is remembered under a key that a rollback does not clear, so
that one branch can get the mask of another (`Engine.allowed` guards against it).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from llguidance import LLMatcher

BYTES_A_MICROSECOND = 3000.0
"""A copy of an engine takes about 1 us for each 3 kB of it (measured from 10 to 500 kB)."""

NOTHING_CONTINUES = "no token of the vocabulary continues the text"


class Node:
    """One state: the text of `parent`, then the bytes of `token`. What it stands for never changes.

    token: the id that llguidance knows. The rest is memory: mask, the allowed tokens, uint32 [W];
    accepting; reason, why nothing is allowed for ever, None where something may be; engine, one
    that has been here.
    """

    __slots__ = ("accepting", "depth", "engine", "mask", "parent", "reason", "token")

    def __init__(self, parent: Node | None, token: int, reason: str | None = None) -> None:
        self.parent = parent
        self.token = token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.mask: npt.NDArray[np.uint32] | None = None
        self.accepting: bool | None = None if reason is None else False
        self.reason = reason
        self.engine: Engine | None = None


class Engine:
    """A llguidance matcher and the nodes from the start to where it stands.

    size: of the vocabulary; llguidance's masks have one bit more, its end of sequence, which is
    cleared here.
    """

    def __init__(self, matcher: LLMatcher, nodes: list[Node], size: int, weight: float) -> None:
        self.matcher = matcher
        self.nodes = nodes
        self.weight_bytes = weight
        self.debt = 0  # tokens gone back or gone again, for want of an engine of one's own
        self._size = size
        self._without_end = ~np.uint32(1 << (size & 31))
        self._moves = 0
        # The last mask that llguidance made, the depth it was made at, and the least depth since.
        self._last = np.zeros(size // 32 + 1, np.uint32)
        self._spare = np.zeros(size // 32 + 1, np.uint32)
        # Where the two lie: numpy takes microseconds to tell.
        self._last_address = self._last.ctypes.data
        self._spare_address = self._spare.ctypes.data
        self._last_depth = self._least_depth = -1

    def copy(self) -> Engine:
        """An engine of its own at the same place. Weighs both by the time that it takes."""
        began = time.thread_time()
        matcher = self.matcher.deep_copy()
        self.weight_bytes = _weight(time.thread_time() - began)
        other = Engine(matcher, list(self.nodes), self._size, self.weight_bytes)
        other._last_depth, other._least_depth = self._last_depth, self._least_depth
        other._last[:] = self._last
        return other

    def weigh(self) -> bool:
        """Count a use; at the 8th, 16th, 32nd, ... weigh the engine anew. Whether it was weighed.

        The weight decides how many engines are kept, hence time and memory, never what is allowed.
        """
        self._moves += 1
        if self._moves < 8 or self._moves & (self._moves - 1):
            return False
        taken = []
        for _ in range(2):  # the lesser of two: fresh pages cost time of their own
            began = time.thread_time()
            self.matcher.deep_copy()
            taken.append(time.thread_time() - began)
        self.weight_bytes = _weight(min(taken))
        return True

    def drop(self) -> None:
        """Free what is large, though nodes may still point here."""
        self.nodes = []
        self._last = self._spare = np.zeros(0, np.uint32)
        del self.matcher

    def stands_on(self, node: Node) -> bool:
        """Whether the text of `node` is a prefix of where this engine stands."""
        return node.depth < len(self.nodes) and self.nodes[node.depth] is node

    def go(self, node: Node) -> bool:
        """Move to `node`; False where llguidance fails on the way."""
        if self.nodes[-1] is node.parent:
            if self.matcher.consume_token(node.token):
                self.arrive(node)
                return True
            return False
        ahead: list[Node] = []
        shared = node
        while not self.stands_on(shared):
            ahead.append(shared)
            assert shared.parent is not None
            shared = shared.parent
        back = len(self.nodes) - 1 - shared.depth
        if back:
            if not self.matcher.rollback(back):
                return False
            del self.nodes[shared.depth + 1 :]
            self._least_depth = min(self._least_depth, shared.depth)
        if ahead:
            ahead.reverse()
            if not self.matcher.consume_tokens([step.token for step in ahead]):
                return False
            for step in ahead:
                self.arrive(step)
        return True

    def arrive(self, node: Node) -> None:
        """Note that llguidance has consumed the token of `node`, a child of where it stood."""
        self.nodes.append(node)
        node.engine = self

    def healthy(self) -> bool:
        """Whether a refusal can be believed: taking the last token back and on again tells."""
        last = self.nodes[-1]
        return last.depth == 0 or (
            self.matcher.rollback(1) and self.matcher.consume_token(last.token)
        )

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        """What llguidance allows here, uint32 [V // 32 + 1], until the next call; None if it fails.

        Gone back below the place of the last mask, one that is equal to it may be that one,
        remembered. Then a mask is made at the least depth since, where the memory is right or is
        put right, and this one again.
        """
        if self.matcher.is_stopped():
            self._spare[:] = 0
            return None if self.matcher.is_error() else self._spare
        if not self._compute():
            return None
        low = self._least_depth
        if low < self._last_depth and np.array_equal(self._spare, self._last):
            ahead = [node.token for node in self.nodes[low + 1 :]]
            if not (self.matcher.rollback(len(ahead)) and self._compute()):
                return None
            if not (self.matcher.consume_tokens(ahead) and self._compute()):
                return None
        self._last_depth = self._least_depth = len(self.nodes) - 1
        self._last, self._spare = self._spare, self._last
        addresses = self._last_address, self._spare_address
        self._spare_address, self._last_address = addresses
        return self._last

    def _compute(self) -> bool:
        spare = self._spare
        self.matcher.unsafe_compute_mask_ptr(self._spare_address, spare.nbytes)
        spare[self._size >> 5] &= self._without_end
        return not self.matcher.is_error()

    def failure(self) -> str:
        """Why llguidance failed, in one line; empty where it did not."""
        return one_line(self.matcher.get_error())


def one_line(message: str) -> str:
    """An error of llguidance, without its listing of the grammar and its dump of the state."""
    for mark in ("\n<state>", "\n<non-verbose/>", "\n<backtrace>"):
        message = message.partition(mark)[0]
    lines = [line for line in message.splitlines() if line.lstrip(" 0123456789")[:1] not in "|^"]
    text = " ".join(" ".join(lines).split())
    text = text.rpartition("failed to compile JSON schema: ")[2]
    if "NoExtensionBias" in text:
        return NOTHING_CONTINUES
    return text if len(text) <= 300 else f"{text[:145]} ... {text[-145:]}"


def _weight(seconds: float) -> float:
    return 2048 + seconds * 1e6 * BYTES_A_MICROSECOND
