"""A parsed pattern as a program for ordered threads (Thompson's automaton with priorities).

Threads in the order of preference follow a text together; the match is that of the first thread
that ever matches. Characters are classes, sets of classes are ints of bits, the end of the text is
bit C.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from midstream.middleware.bytes.splitting.characters import Characters
from midstream.middleware.bytes.splitting.pattern import (
    Ahead,
    Atom,
    Choice,
    Look,
    Node,
    Repeat,
    Sequence,
)
from midstream.middleware.bytes.undecidable import Undecidable

MATCH = 0
NO_ANSWERS: Mapping[int, bool] = MappingProxyType({})
_LONGEST = 4096  # instructions; a counted group of counted groups grows without bound


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions by number; 0 is the match, and all begins at `start`.

    takes: the classes that an instruction consumes, 0 for one that consumes nothing.
    looks: for one that consumes nothing and asks for the next class (or the end), the classes.
    asks: for one that asks whether what follows matches, where that question begins; else -1.
    wants: the answer with which such an instruction leads on.
    then: where an instruction leads, in the order of preference.
    """

    start: int
    takes: tuple[int, ...]
    looks: tuple[int, ...]
    asks: tuple[int, ...]
    wants: tuple[bool, ...]
    then: tuple[tuple[int, ...], ...]

    def questions(self) -> list[int]:
        """Where the looks further ahead begin."""
        return [question for question in self.asks if question >= 0]

    def ready(
        self, threads: Iterable[int], following: int, answers: Mapping[int, bool] = NO_ANSWERS
    ) -> tuple[list[int], bool]:
        """What the threads stand before, given the next class (or end) as one bit.

        The consuming instructions in the order of preference as far as a match, and whether there
        is one: threads behind it can never win. answers: of each question, as of this place.
        """
        found: list[int] = []
        seen: set[int] = set()
        stack = list(threads)[::-1]
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            if at == MATCH:
                return found, True
            if self.takes[at]:
                found.append(at)
            elif self.asks[at] >= 0:
                if answers[self.asks[at]] == self.wants[at]:
                    stack.extend(self.then[at])
            elif self.looks[at] & following:
                stack.extend(self.then[at][::-1])
        return found, False

    def after(self, ready: Iterable[int], taken: int) -> list[int]:
        """Threads behind one character of the class `taken` (one bit), in order, each once."""
        return list(dict.fromkeys(self.then[at][0] for at in ready if self.takes[at] & taken))


def compile_pattern(node: Node, characters: Characters) -> Program:
    """The program of a pattern over the classes that its atoms tell apart."""
    return _Compiler(characters).program(node)


class _Compiler:
    """Builds a program from its end to its start."""

    def __init__(self, characters: Characters) -> None:
        self.characters = characters
        self.everything = (2 << characters.count) - 1  # the end of the text included
        self.takes = [0]
        self.looks = [0]
        self.asks = [-1]
        self.wants = [False]
        self.then: list[tuple[int, ...]] = [()]

    def program(self, node: Node) -> Program:
        start = self.build(node, MATCH)
        return Program(
            start,
            tuple(self.takes),
            tuple(self.looks),
            tuple(self.asks),
            tuple(self.wants),
            tuple(self.then),
        )

    def add(self, takes: int, looks: int, *then: int, asks: int = -1, wants: bool = False) -> int:
        if len(self.takes) >= _LONGEST:
            raise Undecidable("a pre-tokenizer with too many repetitions")
        self.takes.append(takes)
        self.looks.append(looks)
        self.asks.append(asks)
        self.wants.append(wants)
        self.then.append(then)
        return len(self.takes) - 1

    def build(self, node: Node, then: int) -> int:
        match node:
            case Atom(source):
                return self.add(self.characters.atoms[source], 0, then)
            case Sequence(parts):
                for part in reversed(parts):
                    then = self.build(part, then)
                return then
            case Choice(options):
                ways = [self.build(option, then) for option in options]
                return self.add(0, self.everything, *ways)
            case Look():
                return self.add(0, self.looked_for(node), then)
            case Ahead(body, negative):
                question = self.build(body, MATCH)
                return self.add(0, 0, then, asks=question, wants=not negative)
            case Repeat():
                return self.repeat(node, then)

    def looked_for(self, node: Look) -> int:
        bits = (1 << self.characters.count) if node.end else 0
        for atom in node.atoms:
            bits |= self.characters.atoms[atom.source]
        return self.everything & ~bits if node.negative else bits

    def repeat(self, node: Repeat, then: int) -> int:
        """Copies of the body; who may leave is a fork, or for a possessive one no further match."""
        leave = then
        if isinstance(node.body, Atom) and node.mode == "possessive":
            leave = self.add(0, self.everything & ~self.characters.atoms[node.body.source], then)
        if node.high is None:
            at = self.add(0, self.everything)
            body = self.build(node.body, at)
            self.then[at] = self.ordered(node, body, leave)
        else:
            at = then
            for _ in range(node.high - node.low):
                body = self.build(node.body, at)
                at = self.add(0, self.everything, *self.ordered(node, body, leave))
        for _ in range(node.low):
            at = self.build(node.body, at)
        return at

    def ordered(self, node: Repeat, body: int, leave: int) -> tuple[int, int]:
        return (leave, body) if node.mode == "lazy" else (body, leave)
