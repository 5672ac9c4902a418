"""What a pre-tokenizer is made of, read before any class of characters is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from midstream.middleware.bytes.splitting.chain import Chain
from midstream.middleware.bytes.splitting.characters import (
    Characters,
    Engine,
    Members,
    members_of,
    partition,
)
from midstream.middleware.bytes.splitting.pattern import Ahead, Node, atoms_of
from midstream.middleware.bytes.splitting.pattern_cuts import AheadCuts, PatternCuts
from midstream.middleware.bytes.splitting.program import compile_pattern
from midstream.middleware.bytes.splitting.splitters import (
    EdgeCuts,
    FirstIs,
    NoCuts,
    Splitter,
)
from midstream.middleware.token_bytes import PrefixSpace
from midstream.middleware.tokenizer_json import SPACE_MARK

SPACE = "a space"
SPELLED = "a character with a token"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A piece is a match, or what is between two; if `whole`, the latter is lost."""

    tree: Node
    whole: bool


@dataclass(frozen=True, slots=True)
class Edges:
    """Cuts at the edges of the characters of an atom; see EdgeCuts."""

    atom: str
    before: bool
    after: bool
    between: bool


Cut: TypeAlias = Pattern | Edges
Behaviour: TypeAlias = Literal["Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext"]


def edges_of(atom: str, behaviour: Behaviour) -> Edges:
    """The cuts that `tokenizers` makes for a pattern of one character."""
    isolated, contiguous = behaviour == "Isolated", behaviour == "Contiguous"
    return Edges(
        atom,
        before=isolated or contiguous or behaviour == "MergedWithNext",
        after=isolated or contiguous or behaviour == "MergedWithPrevious",
        between=not contiguous,
    )


def chain_of(
    cuts: Sequence[Cut],
    engine: Engine,
    *,
    spelled: Members | None,
    marked: bool,
    prefix_space: PrefixSpace,
) -> tuple[Chain, Characters]:
    """The splitter of a list of cuts, and the classes it works on.

    spelled: the characters that have tokens of their own (all, for None); the atom SPELLED.
    marked: the cuts see SentencePiece's mark in place of a space.
    prefix_space: whether the tokenizer puts a space before every text (but an empty one).
    """
    space = np.zeros(0x110000, np.bool_)
    space[ord(" ")] = True
    atoms: dict[str, Members] = {SPACE: space}
    atoms[SPELLED] = np.ones(0x110000, np.bool_) if spelled is None else spelled
    for cut in cuts:
        for atom in sorted(atoms_of(cut.tree) if isinstance(cut, Pattern) else {cut.atom}):
            members = members_of(atom, engine)
            if marked:
                members = members.copy()
                members[ord(" ")] = members[ord(SPACE_MARK)]
            atoms[atom] = members
    characters = partition(atoms)
    splitters: list[Splitter] = []
    if prefix_space != "never":
        alone = prefix_space == "unless_present"
        splitters.append(FirstIs(characters.atoms[SPACE], alone=alone))
    splitters += [_splitter(cut, characters.atoms, characters) for cut in cuts]
    return Chain(splitters or [NoCuts()], characters.count), characters


def _splitter(cut: Cut, atoms: Mapping[str, int], characters: Characters) -> Splitter:
    if isinstance(cut, Edges):
        return EdgeCuts(atoms[cut.atom], before=cut.before, after=cut.after, between=cut.between)
    if isinstance(cut.tree, Ahead):
        return AheadCuts(compile_pattern(cut.tree, characters), characters.count)
    return PatternCuts(compile_pattern(cut.tree, characters), characters.count, gaps=not cut.whole)
