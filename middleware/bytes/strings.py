"""Token strings as the nodes of one tree, each once."""

from __future__ import annotations


class Strings:
    """Nodes that are only added: a string that comes again has the number that it had.

    parent, token, offset: of each node; offset is how many bytes it spells. The root is node 0, of
        parent and token -1. Parents have lower numbers.
    """

    __slots__ = ("_numbers", "offset", "parent", "token")

    def __init__(self) -> None:
        self.parent = [-1]
        self.token = [-1]
        self.offset = [0]
        self._numbers: dict[tuple[int, int], int] = {}

    def child(self, parent: int, token: int, offset: int) -> int:
        """The node of a string and one more token."""
        key = (parent, token)
        node = self._numbers.get(key)
        if node is None:
            self._numbers[key] = node = len(self.parent)
            self.parent.append(parent)
            self.token.append(token)
            self.offset.append(offset)
        return node

    def path(self, node: int) -> list[int]:
        """The tokens of a node, the first first."""
        tokens = []
        while node > 0:
            tokens.append(self.token[node])
            node = self.parent[node]
        return tokens[::-1]
