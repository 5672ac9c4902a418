"""Characters that a token string has begun, and what they may still become."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.neighbours import Neighbours
from midstream.middleware.bytes.splitting.spelling import Spellings
from midstream.middleware.bytes.splitting.walk import Walk


class Completion:
    """What tokens can make of a begun character, given that each must fit the one before.

    The merges may leave fewer ways than the bytes do: where E2 80 is always merged, the token E2
    begins no character of General Punctuation.
    """

    def __init__(self, walk: Walk, spellings: Spellings, neighbours: Neighbours) -> None:
        self._walk = walk
        self._neighbours = neighbours
        reachable = neighbours.merges.reachable
        self._heads: dict[bytes, list[int]] = {}
        self._only: dict[bytes, list[int]] = {}
        for token, head, kinds, tail in spellings.headed:
            if reachable[token]:
                self._heads.setdefault(head, []).append(token)
                if not kinds and not tail:
                    self._only.setdefault(head, []).append(token)
        self._ways: dict[bytes, tuple[dict[int, list[int]], list[tuple[bytes, int]]]] = {}
        self._candidates: dict[bytes, npt.NDArray[np.int64]] = {}
        self._kinds: dict[tuple[int, bytes], int] = {}

    def kinds(self, last: int, begun: bytes) -> int:
        """The classes, as bits, of the characters that tokens behind `last` can complete."""
        found = self._kinds.get((last, begun))
        if found is None:
            found = self._kinds[last, begun] = self._search(last, begun)
        return found

    def candidates(self, begun: bytes) -> npt.NDArray[np.int64]:
        """The tokens whose bytes go on with a character that is begun, whatever stands before."""
        known = self._candidates.get(begun)
        if known is None:
            complete, partial = self._ways_on(begun)
            tokens = [token for found in complete.values() for token in found]
            tokens += [token for head, _ in partial for token in self._only[head]]
            known = self._candidates[begun] = np.array(tokens, np.int64)
        return known

    def _search(self, last: int, begun: bytes) -> int:
        complete, partial = self._ways_on(begun)
        follows, found = self._neighbours.follows, 0
        for bit, tokens in complete.items():
            if any(follows(last, token) for token in tokens):
                found |= bit
        wanted = self._walk.possible(begun)
        for head, possible in partial:
            if found == wanted:
                break
            if possible & ~found:
                for token in self._only[head]:
                    if follows(last, token):
                        found |= self.kinds(token, begun + head)
        return found

    def _ways_on(self, begun: bytes) -> tuple[dict[int, list[int]], list[tuple[bytes, int]]]:
        """The tokens that complete the character, by its class, and the heads that do not yet."""
        known = self._ways.get(begun)
        if known is None:
            complete: dict[int, list[int]] = {}
            partial = []
            for head, tokens in self._heads.items():
                character = decoded(begun + head)
                if character:
                    bit = 1 << int(self._walk.characters.of[ord(character)])
                    if bit & self._walk.rare:
                        complete.setdefault(bit, []).extend(tokens)
                elif head in self._only and self._walk.possible(begun + head):
                    partial.append((head, self._walk.possible(begun + head)))
            known = self._ways[begun] = (complete, partial)
        return known


def decoded(spelling: bytes) -> str:
    """The character that these bytes are, "" where they are not exactly one."""
    try:
        text = spelling.decode()
    except UnicodeDecodeError:
        return ""
    return text if len(text) == 1 else ""
