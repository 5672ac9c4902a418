"""The parts of a parsed regular expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Literal:
    """One character, as UTF-8."""

    utf8: bytes


@dataclass(frozen=True, slots=True)
class OneOf:
    """One character out of a class: a complete expression for it, and where it stands."""

    source: str
    position: int


@dataclass(frozen=True, slots=True)
class Edge:
    """The empty text, but only where the whole text begins or ends."""

    at_end: bool


@dataclass(frozen=True, slots=True)
class Concat:
    """One after the other; the empty text where there are no parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several."""

    branches: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """From `least` to `most` times; any number from `least` on where `most` is None."""

    inner: Node
    least: int
    most: int | None


Node: TypeAlias = Literal | OneOf | Edge | Concat | Either | Repeat


def positions(node: Node) -> int:
    """The number of characters of the expression once its counted repetitions are written out."""
    if isinstance(node, Concat):
        return max(1, sum(positions(part) for part in node.parts))
    if isinstance(node, Either):
        return len(node.branches) + sum(positions(branch) for branch in node.branches)
    if isinstance(node, Repeat):
        return positions(node.inner) * max(1, node.least if node.most is None else node.most)
    return 1
