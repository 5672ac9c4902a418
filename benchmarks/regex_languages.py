"""Which texts of a pattern outlines-core's Index takes, and which ours does, against `re`.

Every text of at most three letters over a, b and c is tried, one letter a token.
"""

from __future__ import annotations

import argparse
import itertools
import re

import outlines_core

from midstream.middleware.constraints import Regex
from midstream.middleware.vocabulary import Vocabulary

PATTERNS = ["a|ab", "ab|a", "a??b?", "a*?", "^abc$", "(a|ab)(c|bc)?"]
LETTERS = "abc"
TEXTS = ["".join(t) for n in range(4) for t in itertools.product(LETTERS, repeat=n)]


def of_index(pattern: str) -> set[str] | str:
    """The texts that outlines-core's Index takes, or why it refuses the pattern."""
    vocabulary = outlines_core.Vocabulary(3, {c.encode(): [i] for i, c in enumerate(LETTERS)})
    try:
        index = outlines_core.Index(pattern, vocabulary)
    except Exception as error:  # whatever the engine raises is what it says of the pattern
        return str(error)
    taken = set()
    for text in TEXTS:
        state = index.get_initial_state()
        for letter in text:
            state = state if state is None else index.get_next_state(state, LETTERS.index(letter))
        if state is not None and index.is_final_state(state):
            taken.add(text)
    return taken


def of_ours(pattern: str) -> set[str]:
    """The texts that `Regex` takes."""
    matcher = Regex(pattern).compile(Vocabulary([b"a", b"b", b"c", b""], eos_ids=[3]))
    taken = set()
    for text in TEXTS:
        state = matcher.start()
        for letter in text:
            state = None if state is None else matcher.advance(state, LETTERS.index(letter))
        if state is not None and matcher.accepts(state):
            taken.add(text)
    return taken


def main() -> None:
    """Print one row a pattern."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(
        "| pattern | texts | taken by outlines-core's Index | taken by Regex |\n|---|---|---|---|"
    )
    for pattern in PATTERNS:
        texts = {text for text in TEXTS if re.fullmatch(pattern, text)}
        index, ours = of_index(pattern), of_ours(pattern)
        theirs = index if isinstance(index, str) else f"{len(index & texts)} of {len(texts)}"
        shown = ", ".join(text or "(empty)" for text in sorted(texts))
        cell = pattern.replace("|", "\\|")
        print(f"| `{cell}` | {shown} | {theirs} | {len(ours & texts)} of {len(texts)} |")


if __name__ == "__main__":
    main()
