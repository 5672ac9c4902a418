"""The regular expressions of pre-tokenizers, parsed as far as they can be followed exactly.

Alternation, groups, quantifiers (greedy, lazy, possessive after a single class), case-insensitive
groups, the end `$`, and looks ahead, `(?!x)`, `(?=x)`, that hold no further look than at one
character. The rest is `Undecidable`.
What a class holds is left to the engine: an atom is its source text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from midstream.middleware.bytes.splitting.characters import Engine
from midstream.middleware.bytes.undecidable import Undecidable

Mode: TypeAlias = Literal["greedy", "lazy", "possessive"]


@dataclass(frozen=True, slots=True)
class Atom:
    """One character of a class; the engine's own source text."""

    source: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The first of these that leads to a match."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """From `low` to `high` times, None for any number."""

    body: Node
    low: int
    high: int | None
    mode: Mode


@dataclass(frozen=True, slots=True)
class Look:
    """The next character is in one of the atoms, or the text ends and `end`; or, negated, not."""

    atoms: tuple[Atom, ...]
    end: bool
    negative: bool


@dataclass(frozen=True, slots=True)
class Ahead:
    """What follows matches a pattern; or, negated, does not."""

    body: Node
    negative: bool


Node: TypeAlias = Atom | Sequence | Choice | Repeat | Look | Ahead

_QUANTIFIER = re.compile(r"\{(\d*)(,?)(\d*)\}")
_ESCAPE = re.compile(
    r"\\(?:[pP]\{[^}]*\}|[pP][A-Za-z]|x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})"
)
_SIMPLE = frozenset("sSdDwWnrtfv")


def parse(pattern: str, engine: Engine) -> Node:
    """The tree of a pattern. Raises Undecidable for what cannot be followed."""
    parser = _Parser(pattern, engine)
    node = parser.choice(fold=False)
    if parser.at != len(pattern):
        raise parser.refused()
    return node


def atoms_of(node: Node) -> set[str]:
    """The source texts of all atoms below a node."""
    match node:
        case Atom(source):
            return {source}
        case Sequence(parts) | Choice(parts):
            return set().union(*map(atoms_of, parts))
        case Repeat(body) | Ahead(body):
            return atoms_of(body)
        case Look(atoms):
            return {atom.source for atom in atoms}


def holds_ahead(node: Node) -> bool:
    """Whether a look further than at one character is anywhere in a tree."""
    match node:
        case Ahead():
            return True
        case Sequence(parts) | Choice(parts):
            return any(map(holds_ahead, parts))
        case Repeat(body):
            return holds_ahead(body)
    return False


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str, engine: Engine) -> None:
        self.pattern = pattern
        self.engine = engine
        self.at = 0

    def refused(self) -> Undecidable:
        return Undecidable(f"a pre-tokenizer with {self.pattern!r}, unknown from {self.at} on")

    def take(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def choice(self, fold: bool) -> Node:
        options = [self.sequence(fold)]
        while self.take("|"):
            options.append(self.sequence(fold))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def sequence(self, fold: bool) -> Node:
        parts: list[Node] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            parts.append(self.quantified(fold))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def quantified(self, fold: bool) -> Node:
        node = self.single(fold)
        while (times := self.times()) is not None:
            if isinstance(node, (Look, Ahead)):
                raise self.refused()
            low, high, braces = times
            mode: Mode = "greedy"
            if self.take("?"):
                mode = "lazy"
            elif not (braces and self.engine == "tokenizers") and self.take("+"):
                mode = "possessive"  # after braces Oniguruma reads a second quantifier instead
            if mode == "possessive" and not isinstance(node, Atom):
                raise self.refused()
            node = Repeat(node, low, high, mode)
        return node

    def times(self) -> tuple[int, int | None, bool] | None:
        """The bounds of a quantifier, and whether it was written in braces."""
        for sign, low, high in (("?", 0, 1), ("*", 0, None), ("+", 1, None)):
            if self.take(sign):
                return low, high, False
        found = _QUANTIFIER.match(self.pattern, self.at)
        if found is None:
            return None
        first, comma, last = found.groups()
        if not first and not last:
            raise self.refused()
        self.at = found.end()
        low = int(first or 0)
        return low, (int(last) if last else None) if comma else low, True

    def single(self, fold: bool) -> Node:
        if self.take("(?i:"):
            return self.closed(self.choice(fold=True))
        if self.take("(?:"):
            return self.closed(self.choice(fold))
        for opening, negative in (("(?!", True), ("(?=", False)):
            if self.take(opening):
                return self.closed(self.look(fold, negative))
        if self.take("("):
            if self.pattern.startswith("?", self.at):
                raise self.refused()
            return self.closed(self.choice(fold))
        if self.take("$"):
            newline = (Atom(r"\n"),) if self.engine == "tokenizers" else ()  # Ruby's $: of a line
            return Look(newline, True, False)
        return self.atom(fold)

    def closed(self, node: Node) -> Node:
        if not self.take(")"):
            raise self.refused()
        return node

    def look(self, fold: bool, negative: bool) -> Look | Ahead:
        body = self.choice(fold)
        atoms: list[Atom] = []
        end = False
        for option in body.options if isinstance(body, Choice) else (body,):
            if isinstance(option, Atom):
                atoms.append(option)
            elif isinstance(option, Look) and not option.negative:
                atoms.extend(option.atoms)
                end |= option.end
            elif holds_ahead(body):
                raise self.refused()
            else:
                return Ahead(body, negative)
        return Look(tuple(atoms), end, negative)

    def atom(self, fold: bool) -> Atom:
        begin = self.at
        letter = self.pattern[begin : begin + 1]
        if letter == "[":
            self.at = self.end_of_class()
            source = self.pattern[begin : self.at]
        elif letter == "\\":
            source = self.escape()
        elif letter in "*+?{}^)]" or not letter:
            raise self.refused()
        else:
            self.at += 1
            source = letter if letter == "." else re.escape(letter)
        return Atom(f"(?i:{source})" if fold else source)

    def escape(self) -> str:
        found = _ESCAPE.match(self.pattern, self.at)
        if found is not None:
            self.at = found.end()
            return found[0]
        letter = self.pattern[self.at + 1 : self.at + 2]
        if letter not in _SIMPLE and (letter.isalnum() or not letter):
            raise self.refused()
        self.at += 2
        return "\\" + letter

    def end_of_class(self) -> int:
        """Behind the bracket that closes a class; classes may be nested."""
        depth, at, fresh = 0, self.at, False
        while at < len(self.pattern):
            letter = self.pattern[at]
            if letter == "\\":
                at += 1
            elif letter == "[":
                depth += 1
                at += self.pattern.startswith("^", at + 1)
                fresh = True
                at += 1
                continue
            elif letter == "]" and not fresh:
                depth -= 1
                if not depth:
                    return at + 1
            fresh = False
            at += 1
        raise self.refused()
