"""The structure of a regular expression: what is repeated, joined and alternated.

The syntax is that of Rust's `regex` crate, which Outlines and llguidance read too. Only the
structure is parsed here; each character class is left as source text, for the engine to say which
characters it holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NoReturn

from midstream.middleware.constraints.regex_nodes import (
    Concat,
    Edge,
    Either,
    Literal,
    Node,
    OneOf,
    Repeat,
)
from midstream.middleware.errors import ConstraintError

ACCEPTED = (
    "a regular expression in the syntax of Rust's regex crate (which Outlines takes) without "
    "lookaround, backreferences and word boundaries; it is matched against the whole text"
)

MAX_LENGTH = 200_000

MAX_DEPTH = 64
"""Groups within groups, and repetitions of repetitions."""


def parse(pattern: str) -> Node:
    """The structure of `pattern`. Raises ConstraintError that names the position and the reason."""
    try:
        pattern.encode()
    except UnicodeEncodeError as fault:
        refuse(pattern, fault.start, "a lone surrogate is no character")
    if len(pattern) > MAX_LENGTH:
        refuse(pattern, MAX_LENGTH, f"longer than {MAX_LENGTH} characters")
    reader = _Reader(pattern)
    node = reader.alternation(0)
    if reader.at < len(pattern):
        reader.refuse("unopened group: ')' without '('")
    return node


def refuse(pattern: str, position: int, reason: str) -> NoReturn:
    """Raise ConstraintError. The reason comes before the pattern, whose tail a message may lose."""
    raise ConstraintError("pattern", f"{reason}, at position {position} of {pattern!r}", ACCEPTED)


@dataclass(frozen=True, slots=True)
class _Flags:
    ignore_case: bool = False
    dot_all: bool = False
    many_lines: bool = False
    verbose: bool = False


_FLAG_FIELDS = {"i": "ignore_case", "s": "dot_all", "m": "many_lines", "x": "verbose"}
_COUNTED = re.compile(r"\{\s*([0-9]{1,9})\s*(,\s*([0-9]{0,9})\s*)?\}")
_GROUP_NAME = re.compile(r"\?P?<([^\W\d][\w.\[\]]*)>")
_GROUP_FLAGS = re.compile(r"\?([A-Za-z]*)(-[A-Za-z]+)?([:)])")
_CODE_POINT = re.compile(
    r"\\(?:[xuU]\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})"
)
_PROPERTY = re.compile(r"\\[pP](?:\{[^}]*\}|[^{\\])")
_POSIX_CLASS = re.compile(r"\[:\^?[a-z]+:\]")
_LOOKAROUND = ("?=", "?!", "?<=", "?<!")


class _Reader:
    """A cursor over one pattern, with the flags in force."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.flags = _Flags()
        self.names: set[str] = set()

    def refuse(self, reason: str, position: int | None = None) -> NoReturn:
        refuse(self.pattern, self.at if position is None else position, reason)

    def next(self) -> str:
        self.skip_ignored()
        return self.pattern[self.at : self.at + 1]

    def skip_ignored(self) -> None:
        while self.flags.verbose and self.at < len(self.pattern):
            if self.pattern[self.at] == "#":
                end = self.pattern.find("\n", self.at)
                self.at = len(self.pattern) if end < 0 else end + 1
            elif self.pattern[self.at].isspace():
                self.at += 1
            else:
                return

    def alternation(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            self.refuse(f"nested deeper than {MAX_DEPTH}")
        branches = [self.sequence(depth)]
        while self.next() == "|":
            self.at += 1
            branches.append(self.sequence(depth))
        return branches[0] if len(branches) == 1 else Either(tuple(branches))

    def sequence(self, depth: int) -> Node:
        parts: list[Node | None] = []  # None stands for a flag setting, which cannot be repeated
        stacked = 0
        while (char := self.next()) and char not in "|)":
            if char not in "*+?{":
                stacked = 0
                parts.append(self.part(char, depth))
                continue
            if not parts or parts[-1] is None:
                self.refuse("a repetition with nothing to repeat")
            stacked += 1
            if depth + stacked > MAX_DEPTH:
                self.refuse(f"nested deeper than {MAX_DEPTH}")
            parts[-1] = self.repeated(parts[-1], char)
        kept = tuple(part for part in parts if part is not None)
        return kept[0] if len(kept) == 1 else Concat(kept)

    def repeated(self, inner: Node, char: str) -> Repeat:
        if char == "{":
            counts = _COUNTED.match(self.pattern, self.at)
            if counts is None:
                self.refuse(
                    "'{' begins no count such as {2}, {2,} or {2,5} of at most nine digits; "
                    "a literal one is written \\{"
                )
            least = int(counts[1])
            most = least if counts[2] is None else (int(counts[3]) if counts[3] else None)
            if most is not None and most < least:
                self.refuse(f"a count from {least} to {most} is empty")
            self.at = counts.end()
        else:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
            self.at += 1
        if self.next() == "?":  # a lazy repetition has the same language
            self.at += 1
        return Repeat(inner, least, most)

    def part(self, char: str, depth: int) -> Node | None:
        at = self.at
        if char == "(":
            return self.group(depth)
        if char == "[":
            self.at = self.class_end()
            return self.one_of(self.pattern[at : self.at], at)
        if char == "\\":
            return self.escape()
        self.at += 1
        if char == ".":
            return self.one_of(".", at)
        if char in "^$":
            if self.flags.many_lines:
                self.refuse(f"{char!r} at every line (flag m) is not supported", at)
            return Edge(at_end=char == "$")
        return self.literal(char, at)

    def literal(self, char: str, position: int) -> Node:
        if self.flags.ignore_case:
            return self.one_of(f"\\x{{{ord(char):X}}}", position)
        return Literal(char.encode())

    def one_of(self, source: str, position: int) -> OneOf:
        on = [
            letter
            for letter, wanted in (("i", True), ("s", source == "."), ("x", source[0] == "["))
            if wanted and getattr(self.flags, _FLAG_FIELDS[letter])
        ]
        return OneOf(f"(?{''.join(on)}:{source})" if on else source, position)

    def group(self, depth: int) -> Node | None:
        opened, self.at = self.at, self.at + 1
        before = self.flags
        if self.pattern.startswith(_LOOKAROUND, self.at):
            self.refuse("lookaround is not supported", opened)
        if name := _GROUP_NAME.match(self.pattern, self.at):
            if name[1] in self.names:
                self.refuse(f"the group name {name[1]!r} is used twice", opened)
            self.names.add(name[1])
            self.at = name.end()
        elif self.pattern.startswith("?P=", self.at):
            self.refuse("backreferences are not supported", opened)
        elif self.pattern.startswith("?", self.at):
            self.set_flags(opened)
            if self.pattern[self.at - 1] == ")":
                return None
        node = self.alternation(depth + 1)
        if self.next() != ")":
            self.refuse("unclosed group", opened)
        self.at += 1
        self.flags = before
        return node

    def set_flags(self, opened: int) -> None:
        found = _GROUP_FLAGS.match(self.pattern, self.at)
        if found is None or found.group() == "?)":
            self.refuse(
                "'(?' begins no known group; accepted: (?:...), (?P<name>...), (?i) and such",
                opened,
            )
        off = (found[2] or "")[1:]
        for letter in found[1] + off:
            on = letter not in off
            if letter in _FLAG_FIELDS:
                self.flags = replace(self.flags, **{_FLAG_FIELDS[letter]: on})
            elif letter != "U" and (letter, on) != ("u", True):  # U swaps greedy and lazy
                self.refuse(f"flag {letter!r} is not supported; accepted: i, s, m, x, U", opened)
        self.at = found.end()

    def escape(self) -> Node:
        at = self.at
        char = self.pattern[at + 1 : at + 2]
        if not char:
            self.refuse("a backslash ends the pattern")
        if char in "xuUpP":
            found = (_PROPERTY if char in "pP" else _CODE_POINT).match(self.pattern, at)
            if found is None:
                self.refuse(f"'\\{char}' is not followed by what it needs")
            self.at = found.end()
            return self.one_of(found.group(), at)
        self.at += 2
        if char in "dDsSwWaftnrv":
            return self.one_of("\\" + char, at)
        if char in "Az":
            return Edge(at_end=char == "z")
        if char in "bB<>":
            self.refuse("word boundaries are not supported", at)
        if char in "123456789k":
            self.refuse("backreferences are not supported", at)
        if not char.isascii() or char.isalnum():
            self.refuse(f"'\\{char}' is no known escape" + ("; use \\z" if char == "Z" else ""), at)
        return self.literal(char, at)

    def class_end(self) -> int:
        """Where the class that opens here ends. Brackets nest; a ']' at the front is literal."""
        at, depth = self.at, 0
        while at < len(self.pattern):
            char = self.pattern[at]
            posix = _POSIX_CLASS.match(self.pattern, at) if depth else None
            if posix:
                at = posix.end()
            elif char == "[":
                depth += 1
                at = self._after_opening(at + 1)
            elif char == "]":
                depth -= 1
                at += 1
                if depth == 0:
                    return at
            elif char == "#" and self.flags.verbose:
                end = self.pattern.find("\n", at)
                at = len(self.pattern) if end < 0 else end + 1
            else:
                at += 2 if char == "\\" else 1
        self.refuse("unclosed character class")

    def _after_opening(self, at: int) -> int:
        def spaces(at: int) -> int:
            while self.flags.verbose and self.pattern[at : at + 1].isspace():
                at += 1
            return at

        at = spaces(at)
        if self.pattern[at : at + 1] == "^":
            at = spaces(at + 1)
        dashes = at
        while self.pattern[at : at + 1] == "-":
            at = spaces(at + 1)
        return at + 1 if at == dashes and self.pattern[at : at + 1] == "]" else at
