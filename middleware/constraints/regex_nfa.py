"""Thompson's construction over characters, within a bound on its work."""

from __future__ import annotations

from midstream.middleware.constraints.regex_atoms import Atom, class_atom, literal_atom
from midstream.middleware.constraints.regex_nodes import (
    Concat,
    Edge,
    Either,
    Literal,
    Node,
    OneOf,
    Repeat,
    positions,
)

MAX_POSITIONS = 100_000
"""Characters of the expression with its counted repetitions written out."""

MAX_WORK = 1_000_000
"""Set members and transitions visited: one to three seconds, and under 300 MB, at the most."""

ACCEPT = -1
"""The member of a set of characters that says that the text may end."""

_WORK_PER_ATOM_STATE = 20
"""What it costs to have the engine read a class."""

_FORK, _AT_START, _AT_END, _MATCH = -1, -2, -3, -4  # what a node reads that reads no character


class TooLargeError(Exception):
    """The automaton would exceed the bound."""


class AtomError(Exception):
    """The engine does not take a character class."""

    def __init__(self, node: OneOf) -> None:
        super().__init__(node.source)
        self.node = node


class _Work:
    """What is left to spend before TooLargeError."""

    def __init__(self) -> None:
        self.left = MAX_WORK

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise TooLargeError


class Nfa:
    """Nodes are characters, which lead to one node, or forks, which lead to several for nothing.

    Raises TooLargeError, also later when `work` is spent, and AtomError.
    """

    def __init__(self, root: Node) -> None:
        if positions(root) > MAX_POSITIONS:
            raise TooLargeError
        self.atoms: list[Atom] = []
        self.atom_numbers: dict[Literal | str, int] = {}
        self.reads: list[int] = []  # the number of an atom, or one of the names above
        self.leads: list[tuple[int, ...]] = []
        self.work = _Work()
        self.start = self.build(root, self.add(_MATCH, ()))
        self.asserts_end = _AT_END in self.reads

    def add(self, reads: int, leads: tuple[int, ...]) -> int:
        self.work.spend(1 + len(leads))
        self.reads.append(reads)
        self.leads.append(leads)
        return len(self.reads) - 1

    def build(self, node: Node, then: int) -> int:
        """The entry of `node` followed by `then`."""
        match node:
            case Literal() | OneOf():
                return self.add(self.atom(node), (then,))
            case Edge(at_end):
                return self.add(_AT_END if at_end else _AT_START, (then,))
            case Concat(parts):
                for part in reversed(parts):
                    then = self.build(part, then)
                return then
            case Either(branches):
                return self.add(_FORK, tuple(self.build(branch, then) for branch in branches))
            case Repeat():
                return self.repeat(node, then)

    def repeat(self, node: Repeat, then: int) -> int:
        if node.most is None:
            fork = self.add(_FORK, ())
            again = self.build(node.inner, fork)
            self.leads[fork] = (again, then)
            entry = again if node.least else fork
            required = node.least - 1
        else:
            entry, required = then, node.least
            for _ in range(node.most - node.least):
                entry = self.add(_FORK, (self.build(node.inner, entry), then))
        for _ in range(required):
            entry = self.build(node.inner, entry)
        return entry

    def atom(self, node: Literal | OneOf) -> int:
        key = node if isinstance(node, Literal) else node.source
        if key not in self.atom_numbers:
            self.atom_numbers[key] = len(self.atoms)
            try:
                self.atoms.append(
                    literal_atom(node.utf8)
                    if isinstance(node, Literal)
                    else class_atom(node.source)
                )
            except ValueError as fault:
                assert isinstance(node, OneOf)
                raise AtomError(node) from fault
            self.work.spend(_WORK_PER_ATOM_STATE * len(self.atoms[-1]))
        return self.atom_numbers[key]

    def closure(self, start: int, *, at_start: bool) -> frozenset[int]:
        """The characters that may come next from a node, and ACCEPT where the text may end."""
        found: set[int] = set()
        seen = {(start, False)}
        stack = [(start, False)]  # (node, the end was asserted on the way)
        while stack:
            node, ended = stack.pop()
            reads = self.reads[node]
            if reads == _MATCH:
                found.add(ACCEPT)
            elif reads >= 0:
                if not ended:
                    found.add(node)
            elif reads != _AT_START or at_start:
                steps = {(target, ended or reads == _AT_END) for target in self.leads[node]} - seen
                seen |= steps
                stack += steps
        self.work.spend(len(seen))
        return frozenset(found)
