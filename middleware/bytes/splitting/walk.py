"""Sets of a splitter's states, and where each token of a vocabulary leads from a set.

A set holds all that may still be true of the cuts so far. Inside a character (a token may end
there) a member names the class that the character is guessed to become.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.splitting.chain import Chain
from midstream.middleware.bytes.splitting.characters import Characters
from midstream.middleware.bytes.splitting.spelling import Spellings, completions

_Member: TypeAlias = tuple[int, int]  # guessed class or -1, state of the chain

NOTHING = 0
"""The number of the empty set: no way of cutting is left."""


class Walk:
    """Steps of sets of states, made when first asked for; the caller holds a lock.

    rare: the classes that characters spelled in parts may have, as bits.
    """

    def __init__(
        self, chain: Chain, characters: Characters, spellings: Spellings, rare: int
    ) -> None:
        self.chain = chain
        self.characters = characters
        self.spellings = spellings
        self.rare = rare
        self.width = characters.count + len(spellings.tails)
        self._sets: list[frozenset[_Member]] = []
        self._numbers: dict[frozenset[_Member], int] = {}
        self._tables = [np.full((64, self.width), -1, np.int32) for _ in range(2)]
        self._steps: list[dict[int, int]] = [{}, {}]
        self._possible: dict[bytes, int] = {}
        self.number(())
        self.start = self.number([(-1, 0)])

    def number(self, members: Iterable[_Member]) -> int:
        """The number of a set; equal sets have one."""
        key = frozenset(members)
        number = self._numbers.setdefault(key, len(self._sets))
        if number == len(self._sets):
            self._sets.append(key)
            if number >= len(self._tables[0]):
                grown = np.full_like(self._tables[0], -1)
                self._tables = [np.concatenate([table, grown]) for table in self._tables]
        return number

    def step(self, states: int, symbol: int, cut: bool) -> int:
        """The set behind a symbol, with or without a cut before it."""
        steps = self._steps[cut]
        key = states * self.width + symbol
        found = steps.get(key)
        if found is None:
            kinds = self.kinds_of(symbol)
            tagged = symbol >= self.characters.count
            found = self.number(
                [
                    (kind if tagged else -1, after)
                    for guess, state in self._sets[states]
                    if guess < 0
                    for kind in kinds
                    for cuts, after in self.chain.step(state, kind)
                    if cuts == cut
                ]
            )
            steps[key] = found
            self._tables[cut][states, symbol] = found
        return found

    def kinds_of(self, symbol: int) -> list[int]:
        """The classes that a symbol stands for."""
        count = self.characters.count
        if symbol < count:
            return [symbol]
        bits = self.possible(self.spellings.tails[symbol - count])
        return [kind for kind in range(count) if bits >> kind & 1]

    def possible(self, begun: bytes) -> int:
        """The classes that a begun character may become, as bits."""
        bits = self._possible.get(begun)
        if bits is None:
            bounds = completions(begun)
            bits = 0 if bounds is None else self.characters.between(*bounds) & self.rare
            self._possible[begun] = bits
        return bits

    def narrowed(self, states: int, kinds: int) -> int:
        """Inside a character: the members whose guess is still possible."""
        return self.number([member for member in self._sets[states] if kinds >> member[0] & 1])

    def resolved(self, states: int, kind: int) -> int:
        """At the end of a character that turned out to be of this class."""
        return self.number([(-1, state) for guess, state in self._sets[states] if guess == kind])

    def follow(self, states: int, symbols: tuple[int, ...]) -> int:
        """The set behind symbols that no cut parts from each other or from what was before."""
        for symbol in symbols:
            if not states:
                break
            states = self.step(states, symbol, False)
        return states

    def union(self, one: int, other: int) -> int:
        """The set of what is in either."""
        if not one or not other or one == other:
            return one or other
        return self.number(self._sets[one] | self._sets[other])

    def ends(self, states: int) -> bool:
        """Whether the text may end here."""
        return any(guess < 0 and self.chain.ends(state) for guess, state in self._sets[states])

    def guesses(self, states: int) -> int:
        """Inside a character: the classes that are guessed, as bits; else 0."""
        bits = 0
        for guess, _ in self._sets[states]:
            bits |= 1 << guess if guess >= 0 else 0
        return bits

    def may_cut(self, states: int) -> bool:
        """Whether some character may come next with a cut before it."""
        return any(self.step(states, kind, True) for kind in range(self.characters.count))

    def tokens(self, states: int, cut: bool) -> npt.NDArray[np.int32]:
        """int32 [V]: the set behind each token, the first cut as given; NOTHING where none is."""
        at = np.full(len(self.spellings.words) + 1, states, np.int32)
        at[-1] = NOTHING  # of tokens that spell nothing, place -1
        for place, column in enumerate(self.spellings.columns):
            some = at[: column.size]
            at[: column.size] = self._column(some, column, cut and not place)
        return at[self.spellings.word_of]

    def _column(
        self, states: npt.NDArray[np.int32], symbols: npt.NDArray[np.int32], cut: bool
    ) -> npt.NDArray[np.int32]:
        """One step of many sets; steps that are not known yet are made first."""
        found = self._tables[cut][states, symbols]
        new = np.flatnonzero(found < 0)
        if new.size:
            keys = np.unique(states[new].astype(np.int64) * self.width + symbols[new])
            for key in keys.tolist():
                self.step(key // self.width, key % self.width, cut)
            found = self._tables[cut][states, symbols]
        return found
