"""Which token strings a beam will follow over bytes that are known already.

What a beam follows depends on laws that are not read yet. But the law behind a token string is much
like that behind another one of the same bytes, which stands in for it here: so most of what the
coming bytes will ask for is read in a few forwards, ahead of them. Nothing of this is in any
result: what was not foreseen is read when it is asked for, what was foreseen in vain is not used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import itemgetter

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.sorted_row import SortedRow, log_sum
from midstream.middleware.bytes.reading import Branches
from midstream.middleware.bytes.strings import Strings

WINDOW = 64
"""Bytes that are looked ahead."""

_UNKNOWN = -5.0  # log P of a token where no law behind these bytes is read: few tokens are best
_BLIND = 2  # strings of each length that are foreseen then: enough to have a law for most lengths
_NEAR = 3  # bytes for which that is not yet so: what goes over them stands on laws that are read

_Ways = list[tuple[int, list[int]]]


class Foresight:
    """A beam over coming bytes, on the laws that are read and on stand-ins.

    width, log_epsilon: of the beam.
    """

    def __init__(
        self,
        strings: Strings,
        branches: Branches,
        vocabulary: ByteSortedVocabulary,
        *,
        width: int,
        log_epsilon: float,
    ) -> None:
        self._strings, self._branches, self._vocabulary = strings, branches, vocabulary
        self._width, self._log_epsilon = width, log_epsilon

    def look(self, live: Sequence[tuple[int, int, float]], length: int, coming: bytes) -> list[int]:
        """Of the nodes that the coming bytes will likely ask for those that are not read, parents
        first, at most as many as one forward reads. Makes those that are new.

        live: of what is followed its node, its node of the vocabulary, and log P of its tokens.
        length: of the text so far.
        """
        coming, has = coming[:WINDOW], self._branches.has
        walk = _Walk(self._branches, len(coming))
        for node, trie, log_p in live:
            if trie:
                walk.go_on(0, node, node, log_p, self._ways(trie, coming, 0))
        kept = sorted([(log_p, node) for node, trie, log_p in live if not trie], reverse=True)
        wanted: list[int] = []
        for at in range(len(coming) + 1):
            stand = next((node for _, node in kept if has(node)), None)
            ways = self._ways(0, coming, at) if kept else []
            for log_p, node in kept:
                walk.go_on(at, node, node if has(node) else stand, log_p, ways)
            if at == len(coming) or len(wanted) >= self._branches.chunk:
                break
            kept = self._kept(walk, at + 1, length, blind=stand is None and at >= _NEAR)
            wanted += [node for _, node in kept if not has(node)]
        return wanted[: self._branches.chunk]

    def _kept(self, walk: _Walk, at: int, length: int, *, blind: bool) -> list[tuple[float, int]]:
        """What the beam would follow of the strings that end there, the heaviest first."""
        most = min(self._width, _BLIND) if blind else self._width
        ended = sorted(walk.ended[at], reverse=True)[:most]
        if not ended:
            return []
        least = max(ended[0][0], walk.over[at]) + self._log_epsilon
        return [
            (log_p, self._strings.child(parent, token, length + at))
            for i, (log_p, parent, token) in enumerate(ended)
            if log_p >= least or not i
        ]

    def _ways(self, trie: int, coming: bytes, at: int) -> _Ways:
        """The tokens that go on from a node and end with one of the coming bytes: where, which."""
        known, found = self._vocabulary, []
        for end in range(at, len(coming)):
            trie = known.child(trie, coming[end])
            if trie < 0:
                break
            low, ends = int(known.low[trie]), int(known.ends[trie])
            if low < ends:
                found.append((end + 1, known.order[low:ends].tolist()))
        return found


def foretold(
    heads: Iterable[tuple[int, float, SortedRow | None]],
    vocabulary: ByteSortedVocabulary,
    *,
    likely: float,
) -> bytes:
    """The bytes that follow a text with at least a share of its mass each, as far as the heads that
    are read can tell: the rest of one token at most.

    heads: of each its node of the vocabulary, log P of its tokens, and what follows it, None where
        that is not read.
    """
    masses, going = [], []
    for trie, log_p, row in heads:
        if trie and row is not None:
            log_p += row.log_sum(int(vocabulary.ends[trie]), int(vocabulary.high[trie]))
            going.append((log_p, trie, row))
        masses.append(log_p)
    if not going:
        return b""
    log_mass, trie, row = max(going, key=itemgetter(0))
    low, high = int(vocabulary.ends[trie]), int(vocabulary.high[trie])
    least = log_sum(masses) + math.log(likely) - log_mass + row.log_sum(low, high)
    at, found = row.heaviest(low, high) if low < high else -1, bytearray()
    while at >= int(vocabulary.ends[trie]):
        first, last = int(vocabulary.first_child[trie]), int(vocabulary.first_child[trie + 1])
        trie = first - 1 + int(vocabulary.low[first:last].searchsorted(at, side="right"))
        if not row.log_sum(int(vocabulary.low[trie]), int(vocabulary.high[trie])) >= least:
            break
        found.append(int(vocabulary.byte[trie]))
    return bytes(found)


class _Walk:
    """Log masses of strings by where they end, and of the heaviest that goes on over a place."""

    def __init__(self, branches: Branches, length: int) -> None:
        self._branches = branches
        self.ended: list[list[tuple[float, int, int]]] = [[] for _ in range(length + 1)]
        self.over = [-math.inf] * (length + 1)

    def go_on(self, at: int, node: int, law: int | None, log_p: float, ways: _Ways) -> None:
        """From a node by all ways, with the law behind another node, None for no law."""
        for end, tokens in ways:
            for token in tokens:
                step = _UNKNOWN if law is None else self._branches.log_p_of(law, token)
                self.ended[end].append((log_p + step, node, token))
                for between in range(at + 1, end):
                    self.over[between] = max(self.over[between], log_p + step)
