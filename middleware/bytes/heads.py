"""The token strings that a text may stand in, structure alone: no model is asked.

A head is a token string that ends at or before the end of the text and can go on to spell what
is left of it. Heads share their beginnings, so they are nodes of one tree. With a plain BPE one
head is born at each byte; what all heads share is the trunk, which no later byte can change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.middleware.vocabulary import Vocabulary

Words = npt.NDArray[np.uint32]

_FEW = 4  # so many tokens are asked one by one; of more the mask is read
_LOOK = 256


class Places(Protocol):
    """Which token strings count: `Canonical`, or whatever answers the same four questions."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokenizer."""

    def start(self) -> Any:
        """The place at the beginning of a text."""

    def step(self, place: Any, token: int) -> Any | None:
        """The place after a token, None where it may not follow."""

    def mask(self, place: Any) -> Words:
        """uint32 [W]: the tokens that `step` takes, and end of sequence where `may_end`."""

    def may_end(self, place: Any) -> bool:
        """Whether the text may stop here."""


class AnyTokens:
    """The places under which all token strings count that special tokens have no part in."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        counts = np.fromiter(map(bool, vocabulary.token_bytes), np.bool_, len(vocabulary))
        counts[list(vocabulary.eos_ids)] = True
        self._mask = pack_mask(counts)

    def start(self) -> int:
        """The only place there is."""
        return 0

    def step(self, place: int, token: int) -> int | None:
        """None for a special token."""
        return place if self.vocabulary.token_bytes[token] else None

    def mask(self, place: int) -> Words:
        """All but special tokens that end nothing."""
        return self._mask

    def may_end(self, place: int) -> bool:
        """Anywhere."""
        return True


@dataclass(frozen=True, slots=True)
class Head:
    """A token string that may go on.

    node: its number in the tree. trie: the node of the vocabulary for the bytes of the text behind
        it, 0 where it ends with the text.
    """

    node: int
    trie: int
    witness: int  # where in the order of the vocabulary a token stands that can go on; -1: unknown


class Heads:
    """The heads of a text that grows byte by byte, and shrinks again.

    places: which token strings count. vocabulary: its tokens in the order of their bytes.

    parent, token, offset, place: of each node, ascending in offset; the root is node 0, of parent
        and token -1. A node keeps its number while the text is no shorter than its offset.
    text: the bytes pushed. live: the heads of it. Empty where nothing covers the text.
    """

    __slots__ = ("_history", "_places", "_vocabulary", "offset", "parent", "place", "text", "token")

    def __init__(self, places: Places, vocabulary: ByteSortedVocabulary) -> None:
        self._places = places
        self._vocabulary = vocabulary
        self.parent = [-1]
        self.token = [-1]
        self.offset = [0]
        self.place: list[Any] = [places.start()]
        self.text = bytearray()
        self._history: list[tuple[Head, ...]] = [(Head(0, 0, -1),)]

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def live(self) -> tuple[Head, ...]:
        """The heads of the text, in the order of their birth."""
        return self._history[-1]

    def live_at(self, length: int) -> tuple[Head, ...]:
        """The heads that the text had when it was `length` bytes long."""
        return self._history[length]

    def push(self, byte: int) -> None:
        """One more byte of the text."""
        known = self._vocabulary
        going: list[Head] = []
        born: list[Head] = []
        self.text.append(byte)
        for head in self._history[-1]:
            trie = known.child(head.trie, byte)
            if trie < 0:
                continue
            low, ends = int(known.low[trie]), int(known.ends[trie])
            if low < ends:
                self._bear(head.node, known.order[low:ends].tolist(), born)
            witness = self._witness(head, ends, int(known.high[trie]))
            if witness >= 0:
                going.append(Head(head.node, trie, witness))
        self._history.append((*going, *born))

    def rollback(self, length: int) -> None:
        """Take back what was pushed after the first `length` bytes."""
        del self._history[length + 1 :]
        del self.text[length:]
        count = len(self.offset)
        while self.offset[count - 1] > length:
            count -= 1
        for each in (self.parent, self.token, self.offset, self.place):
            del each[count:]

    def path(self, node: int) -> list[int]:
        """The tokens of a node, the first first."""
        tokens = []
        while node > 0:
            tokens.append(self.token[node])
            node = self.parent[node]
        return tokens[::-1]

    def root(self) -> int:
        """The last node that all live heads share; -1 where there are none."""
        nodes = {head.node for head in self.live}
        while len(nodes) > 1:
            latest = max(nodes)  # no ancestor of the others: parents have lower numbers
            nodes.remove(latest)
            nodes.add(self.parent[latest])
        return nodes.pop() if nodes else -1

    @property
    def trunk(self) -> list[int]:
        """The tokens that all live heads begin with."""
        return self.path(self.root())

    def _bear(self, node: int, tokens: list[int], born: list[Head]) -> None:
        for token in tokens:
            place = self._places.step(self.place[node], token)
            if place is not None:
                born.append(Head(len(self.parent), 0, -1))
                self.parent.append(node)
                self.token.append(token)
                self.offset.append(len(self.text))
                self.place.append(place)

    def _witness(self, head: Head, begin: int, end: int) -> int:
        """Where in order[begin:end] a token stands that may follow the head; -1: nowhere."""
        if begin <= head.witness < end:
            return head.witness
        place, order = self.place[head.node], self._vocabulary.order
        if end - begin <= _FEW:
            for at in range(begin, end):
                if self._places.step(place, int(order[at])) is not None:
                    return at
            return -1
        mask = self._places.mask(place)
        for start in range(begin, end, _LOOK):
            ids = order[start : min(start + _LOOK, end)]
            allowed = np.flatnonzero((mask[ids >> 5] >> (ids & 31).astype(np.uint32)) & 1)
            if allowed.size:
                return start + int(allowed[0])
        return -1
