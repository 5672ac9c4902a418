"""A vocabulary in the order of its tokens' bytes, and the trie of their prefixes.

In that order the tokens that begin with some bytes are one stretch, those that are just these bytes
come first in it, and the next byte splits the rest into stretches again. So the mass of a next byte
is the sum of a stretch: no matrix, no walk over the nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, init=False, eq=False, repr=False, weakref_slot=True)
class ByteSortedVocabulary:
    """Token ids sorted by their bytes, and a node for each prefix of a token. Immutable, shared.

    token_bytes: [V], the bytes of each id; b"" for a special token, which spells nothing and is in
        no stretch.
    eos_ids: ids with b"" that end a sequence; the other special ids are kept apart from them.

    order: int64 [V], ids by their bytes (of equal bytes the lower id first), then the end of
        sequence ids, then the other special ids, both ascending.
    spelled, ending: how many ids spell something; how many end a sequence.

    Nodes are numbered breadth first, the root is 0 and stands for b"", the children of a node are
    consecutive and in the order of their bytes. All int32 [N] but `byte` and `first_child`:
    low, high: the tokens that begin with the node's bytes are order[low:high].
    ends: those that are just these bytes are order[low:ends].
    byte: uint8 [N], the last byte of the node (of the root 0).
    first_child: int32 [N + 1], the children of node n are first_child[n] to first_child[n + 1].

    Raises ValueError for an empty vocabulary, entries that are not bytes, and eos_ids that are out
    of range or spell something.
    """

    order: npt.NDArray[np.int64]
    spelled: int
    ending: int
    low: Ints
    high: Ints
    ends: Ints
    byte: npt.NDArray[np.uint8]
    first_child: Ints
    _labels: bytes

    def __init__(self, token_bytes: Sequence[bytes], *, eos_ids: Sequence[int] = ()) -> None:
        eos = _checked(token_bytes, eos_ids)
        ordinary = [token for token, spelling in enumerate(token_bytes) if spelling]
        ordinary.sort(key=token_bytes.__getitem__)  # stable: equal bytes stay in the order of ids
        spelling = [token_bytes[token] for token in ordinary]
        others = [t for t, spelt in enumerate(token_bytes) if not spelt and t not in eos]
        low, high, byte, children = _nodes(spelling)
        first_child = np.cumsum([1, *children.tolist()], dtype=np.int64).astype(np.int32)
        begins = np.append(low, 0)[first_child[:-1]]
        values: dict[str, object] = {
            "order": np.array([*ordinary, *sorted(eos), *others], np.int64),
            "spelled": len(ordinary),
            "ending": len(eos),
            "low": low,
            "high": high,
            "ends": np.where(children > 0, begins, high).astype(np.int32),
            "byte": byte,
            "first_child": first_child,
            "_labels": byte.tobytes(),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return int(self.order.size)

    def __repr__(self) -> str:
        return f"ByteSortedVocabulary({len(self)} tokens, {self.low.size} nodes)"

    def child(self, node: int, byte: int) -> int:
        """The node one byte further on; -1 where no token goes on so, or from -1."""
        if node < 0:
            return -1
        return self._labels.find(byte, int(self.first_child[node]), int(self.first_child[node + 1]))

    def node(self, prefix: bytes) -> int:
        """The node of these bytes, -1 where no token begins with them."""
        node = 0
        for byte in prefix:
            node = self.child(node, byte)
        return node

    def range_of(self, prefix: bytes) -> tuple[int, int]:
        """`low` and `high` of the tokens that begin with these bytes; (0, 0) for none."""
        node = self.node(prefix)
        return (0, 0) if node < 0 else (int(self.low[node]), int(self.high[node]))


def _checked(token_bytes: Sequence[bytes], eos_ids: Sequence[int]) -> set[int]:
    if not len(token_bytes):
        raise ValueError("token_bytes: got no tokens; accepted: at least one")
    for token, spelling in enumerate(token_bytes):
        if not isinstance(spelling, bytes):
            raise ValueError(f"token_bytes[{token}]: got {spelling!r}; accepted: bytes")
    for token in eos_ids:
        if not 0 <= token < len(token_bytes) or token_bytes[token]:
            accepted = f'ids from 0 to {len(token_bytes) - 1} whose bytes are b""'
            raise ValueError(f"eos_ids: got {token}; accepted: {accepted}")
    return set(eos_ids)


def _nodes(spelling: list[bytes]) -> tuple[Ints, Ints, npt.NDArray[np.uint8], Ints]:
    """Of sorted byte strings: low, high, last byte and number of children of each node."""
    length = np.fromiter(map(len, spelling), np.int64, len(spelling))
    text = np.frombuffer(b"".join(spelling), np.uint8)
    begin = np.cumsum(length) - length
    token, above = np.arange(len(spelling)), np.zeros(len(spelling), np.int64)
    low, high = [np.zeros(1, np.int64)], [np.full(1, len(spelling))]
    byte, parent = [np.zeros(1, np.uint8)], [np.zeros(0, np.int64)]
    nodes, depth = 1, 0
    while token.size:
        last = text[begin[token] + depth]
        new = np.ones(token.size, np.bool_)
        new[1:] = (above[1:] != above[:-1]) | (last[1:] != last[:-1])
        starts = np.flatnonzero(new)
        low.append(token[starts])
        high.append(token[starts] + np.diff(starts, append=token.size))
        byte.append(last[starts])
        parent.append(above[starts])
        above = nodes - 1 + np.cumsum(new)
        nodes += starts.size
        depth += 1
        longer = length[token] > depth
        token, above = token[longer], above[longer]
    children = np.bincount(np.concatenate(parent), minlength=nodes).astype(np.int32)
    ends = [np.concatenate(part).astype(np.int32) for part in (low, high)]
    return ends[0], ends[1], np.concatenate(byte), children
