"""From the structure of a regular expression to a deterministic automaton, within a bound.

Subsets of (character, state within its UTF-8). The bound counts work and never time, so that one
pattern is served by the same engine everywhere.
"""

from __future__ import annotations

from array import array
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.middleware.constraints.automaton import DEAD, NEVER, START, Automaton
from midstream.middleware.constraints.regex_atoms import COMPLETE, NOWHERE, Atom
from midstream.middleware.constraints.regex_nfa import ACCEPT, Nfa, TooLargeError
from midstream.middleware.constraints.regex_nodes import Node

MAX_ENTRIES = 1 << 23
"""States times classes of bytes: a table of 32 MB."""

Subset: TypeAlias = frozenset[int]


class EmptyLanguageError(Exception):
    """No text matches."""


def determinize(node: Node) -> Automaton:
    """The automaton of the texts that match `node` from end to end.

    Raises TooLargeError, EmptyLanguageError, or AtomError.
    """
    return _Subsets(Nfa(node)).automaton()


class _Subsets:
    """States are sets of members: node * width + the state within the atom that the node reads."""

    def __init__(self, nfa: Nfa) -> None:
        self.nfa = nfa
        self.width = max([len(atom) for atom in nfa.atoms], default=1)
        self.classes, some_byte = _byte_classes(nfa.atoms)
        self.columns = len(some_byte)
        self.atom_tables = [atom[:, some_byte] for atom in nfa.atoms]  # by class
        self.edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self.follows: dict[int, Subset] = {}
        self.numbers: dict[Subset, int] = {frozenset(): DEAD}
        self.size = START
        self.waiting: list[tuple[int, Subset]] = []
        self.blocks: list[tuple[int, int]] = []

    def follow(self, node: int) -> Subset:
        """The members after the character of `node`."""
        if node not in self.follows:
            closure = self.nfa.closure(self.nfa.leads[node][0], at_start=False)
            self.follows[node] = self.members(closure)
        return self.follows[node]

    def members(self, closure: frozenset[int]) -> Subset:
        return frozenset(ACCEPT if node == ACCEPT else node * self.width for node in closure)

    def edges_of(self, atom: int, state: int) -> list[tuple[int, int]]:
        """The class and the next state of each transition within an atom."""
        if (atom, state) not in self.edges:
            row = self.atom_tables[atom][state].tolist()
            found = [(column, target) for column, target in enumerate(row) if target != NOWHERE]
            self.edges[atom, state] = found
        return self.edges[atom, state]

    def moves(self, subset: Subset) -> dict[int, Subset]:
        """The subset after a byte of each class."""
        after: dict[int, Subset] = {}
        for member in subset - {ACCEPT}:
            node, state = divmod(member, self.width)
            for column, target in self.edges_of(self.nfa.reads[node], state):
                if target == COMPLETE:
                    step = self.follow(node)
                else:
                    step = frozenset((node * self.width + target,))
                known = after.get(column)
                after[column] = step if known is None else known | step
                self.nfa.work.spend(1 if known is None else 1 + len(step))
        return after

    def number(self, subset: Subset) -> int:
        """The state of a subset. Those within one character alone come all at once."""
        if subset not in self.numbers:
            (member, *others) = subset
            if others or member == ACCEPT or member % self.width == 0:
                self.nfa.work.spend(len(subset))
                self.numbers[subset] = self.size
                self.waiting.append((self.size, subset))
                self.size += 1
            else:
                node = member // self.width
                inner = len(self.atom_tables[self.nfa.reads[node]]) - 1
                for state in range(1, inner + 1):
                    self.numbers[frozenset((node * self.width + state,))] = self.size + state - 1
                self.blocks.append((self.size, node))
                self.size += inner
            if self.size * self.columns > MAX_ENTRIES:
                raise TooLargeError
        return self.numbers[subset]

    def automaton(self) -> Automaton:
        self.number(self.members(self.nfa.closure(self.nfa.start, at_start=True)))
        sources, columns, targets = array("i"), array("i"), array("i")
        afters = array("i")  # per block, the state after its character
        accepting = []
        while self.waiting or len(afters) < len(self.blocks):
            for _, node in self.blocks[len(afters) :]:
                afters.append(self.number(self.follow(node)))
            found, self.waiting = self.waiting, []
            for source, subset in found:
                if ACCEPT in subset:
                    accepting.append(source)
                for column, step in self.moves(subset).items():
                    sources.append(source)
                    columns.append(column)
                    targets.append(self.number(step))
        table = np.zeros((self.size, self.columns), np.int32)
        table[np.asarray(sources), np.asarray(columns)] = targets
        for (base, node), after in zip(self.blocks, afters, strict=True):
            inner = self.atom_tables[self.nfa.reads[node]][1:]
            rows = np.where(inner == COMPLETE, after, inner + (base - 1))
            table[base : base + len(inner)] = np.where(inner == NOWHERE, DEAD, rows)
        accepts = np.zeros(self.size, np.bool_)
        accepts[accepting] = True
        automaton = Automaton(table, self.classes, accepts)
        return _trimmed(automaton) if self.nfa.asserts_end else automaton


def _byte_classes(atoms: list[Atom]) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.intp]]:
    """The class of each byte [256], shared where no atom tells bytes apart; a byte of each class.

    Class DEAD holds the bytes that no atom takes; UTF-8 leaves some (0xFF) whatever the atoms.
    """
    columns = np.concatenate([np.full((1, 256), NOWHERE, np.int32), *atoms])
    taken = (columns != NOWHERE).any(axis=0)
    _, number = np.unique(columns, axis=1, return_inverse=True)
    number = np.where(taken, number.reshape(-1), -1)
    _, some_byte, classes = np.unique(number, return_index=True, return_inverse=True)
    return classes.reshape(-1).astype(np.int16), some_byte


def _trimmed(automaton: Automaton) -> Automaton:
    """The automaton without the states from which nothing is accepted."""
    finish = automaton.steps_to_finish(np.ones(automaton.table.shape[1], np.bool_))
    useful = finish != NEVER
    useful[DEAD] = False
    if not useful[START]:
        raise EmptyLanguageError
    if useful[START:].all():
        return automaton
    number = np.where(useful, np.cumsum(useful), DEAD).astype(np.int32)
    kept = np.concatenate([[DEAD], np.flatnonzero(useful)])
    return Automaton(number[automaton.table[kept]], automaton.classes, automaton.accepting[kept])
