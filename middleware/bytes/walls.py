"""Added tokens, which a tokenizer takes out of a text before it merges anything."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.kept import Kept

Bools = npt.NDArray[np.bool_]
_State: TypeAlias = tuple[bytes, frozenset[bytes]]

_KEPT = 64


class Walls:
    """Refuses token strings whose bytes spell the text of an added token by other tokens.

    Of such texts the leftmost is taken out, of those that begin at one place the longest. The state
    is (begun, barred): the longest end of the bytes behind the last added token that begins such a
    text; and what is begun of those that would have been taken instead of that token.

    added: the added tokens that may stand in a text.
    """

    def __init__(
        self, texts: Sequence[bytes], token_bytes: Sequence[bytes], added: Iterable[int]
    ) -> None:
        self._texts = texts
        self._token_bytes = token_bytes
        self._added = frozenset(added)
        self._whole = re.compile(b"|".join(map(re.escape, texts)))
        self._complete = set(texts)
        self._begun = {text[:size] for text in texts for size in range(1, len(text))}
        self._longest = max(map(len, texts)) - 1
        first = bytes({text[0] for text in texts})
        self._first = re.compile(b"[" + re.escape(first) + b"]")
        self._order = sorted(range(len(token_bytes)), key=token_bytes.__getitem__)
        self._sorted = [token_bytes[token] for token in self._order]
        found = [self._whole.search(spelling) is not None for spelling in token_bytes]
        self._always = np.array(found, np.bool_)
        self._refused: Kept[_State, Bools] = Kept(_KEPT)

    def start(self) -> Hashable:
        """Nothing is begun."""
        return b"", frozenset()

    def step(self, state: Hashable, token: int) -> Hashable | None:
        """What is begun behind a token."""
        assert isinstance(state, tuple)
        begun, barred = state
        spelling = self._token_bytes[token]
        bars = self._bars(barred, spelling) if barred else barred
        if bars is None:
            return None
        text = begun + spelling
        if token in self._added:
            earlier = self._whole.search(text)
            if earlier is None or earlier.start() < len(begun):
                return None
            ends = {text[at:] for at in range(len(begun) + 1)}
            return b"", bars | (ends & self._begun)
        if self._whole.search(text):
            return None
        for found in self._first.finditer(text, max(0, len(text) - self._longest)):
            if text[found.start() :] in self._begun:
                return text[found.start() :], bars
        return b"", bars

    def refused(self, state: Hashable) -> Bools:
        """The tokens that complete a text that is begun, and those that hold one."""
        assert isinstance(state, tuple)
        begun, barred = state
        known = self._refused.get((begun, barred))
        if known is None:
            known = self._always.copy()
            for text in self._texts:
                for size in range(1, len(text)):
                    if text[:size] in barred or begun.endswith(text[:size]):
                        known[self._beginning(text[size:])] = True
            for token in self._added:
                known[token] = self.step(state, token) is None
            self._refused.put((begun, barred), known)
        return known

    def _bars(self, barred: frozenset[bytes], spelling: bytes) -> frozenset[bytes] | None:
        """What stays begun of what must not be completed; None where something is."""
        for begun in barred:
            text = begun + spelling
            for size in range(len(begun) + 1, len(text) + 1):
                if text[:size] in self._complete:
                    return None
        return frozenset([begun + spelling for begun in barred]) & self._begun

    def _beginning(self, rest: bytes) -> list[int]:
        low = bisect_left(self._sorted, rest)
        high = low
        while high < len(self._sorted) and self._sorted[high].startswith(rest):
            high += 1
        return self._order[low:high]
