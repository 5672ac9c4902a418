"""What one character of a regular expression may be: small automata over the bytes of UTF-8."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

NOWHERE = -2
COMPLETE = -1

Atom: TypeAlias = npt.NDArray[np.int32]
"""Entry [q, b]: the state after byte b in state q, NOWHERE, or COMPLETE: the character is whole.

State 0 is the start. UTF-8 is free of prefixes, so a complete character has nothing to add.
"""


def literal_atom(utf8: bytes) -> Atom:
    """One given character."""
    atom = np.full((len(utf8), 256), NOWHERE, np.int32)
    for state, byte in enumerate(utf8):
        atom[state, byte] = COMPLETE if state + 1 == len(utf8) else state + 1
    return atom


@lru_cache(maxsize=256)
def class_atom(source: str) -> Atom:
    """A character class, read by outlines-core. Raises ValueError with the engine's reason.

    outlines-core is asked for single characters only: over longer texts its automaton prefers the
    first alternative that matches, so that of "a|ab" it takes "a" but not "ab".
    """
    from outlines_core import Index, Vocabulary  # has no stubs

    every_byte = Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
    index = Index(source, every_byte)
    final = index.get_final_states()
    transitions = index.get_transitions()
    names = {index.get_initial_state(): 0}
    atom = np.full((len(transitions), 256), NOWHERE, np.int32)
    for state in (waiting := list(names)):
        for byte, target in transitions[state].items():
            if target not in names and target not in final:
                names[target] = len(names)
                waiting.append(target)
            atom[names[state], byte] = names.get(target, COMPLETE)
    atom = atom[: len(names)]
    atom.flags.writeable = False
    return atom
