"""Tokenizers that look a whole piece up before they merge (`ignore_merges`, tiktoken).

A token that the merges would not make of its own bytes can then only be a whole piece, and the
tokens that the merges make of those bytes can not be one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from midstream.middleware.bytes.merges import Merges

ROOT = 0
OFF = -1  # the piece so far begins no such word
WHOLE = -2  # the piece so far is such a word, and must end


class WholeWords:
    """The words that only a whole piece may be, and a trie of what the merges make of them.

    only: those tokens. ends: the nodes at which a piece must not end.
    """

    def __init__(self, merges: Merges, token_bytes: Sequence[bytes], tokens: Iterable[int]) -> None:
        self.only: set[int] = set()
        self.ends: set[int] = set()
        self._children: list[dict[int, int]] = [{}]
        for token in tokens:
            if merges.reachable[token] or not _is_text(token_bytes[token]):
                continue
            self.only.add(token)
            if token in merges.base:
                self._add(merges.encode(merges.base[token])[0])

    def _add(self, path: list[int]) -> None:
        node = ROOT
        for token in path:
            children = self._children[node]
            if token not in children:
                children[token] = len(self._children)
                self._children.append({})
            node = children[token]
        self.ends.add(node)

    def after(self, node: int, token: int, cut: bool) -> int:
        """Where the piece at hand stands behind a token, which begins it if `cut`."""
        if cut and token in self.only:
            return WHOLE
        if not cut and node < 0:
            return OFF
        return self._children[ROOT if cut else node].get(token, OFF)

    def ending(self, node: int) -> list[int]:
        """The tokens that lead from a node to one at which a piece must not end."""
        if node < 0:
            return []
        return [token for token, child in self._children[node].items() if child in self.ends]


def _is_text(spelling: bytes) -> bool:
    try:
        return bool(spelling.decode())
    except UnicodeDecodeError:
        return False
