"""What may be true of the cuts behind a token string, and which tokens go on from there.

A way is (node, states): where the piece at hand stands among the words that only a whole piece may
be, and the set of what the pre-tokenizer may have decided. Behind every token the next cut is open:
with a cut any token may come that the pre-tokenizer lets stand there, without one only a token that
the merges leave beside the one before.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.completion import Completion, decoded
from midstream.middleware.bytes.kept import Kept
from midstream.middleware.bytes.neighbours import Neighbours
from midstream.middleware.bytes.splitting.spelling import Spellings
from midstream.middleware.bytes.splitting.walk import NOTHING, Walk
from midstream.middleware.bytes.whole_words import OFF, WHOLE, WholeWords

Bools = npt.NDArray[np.bool_]
WaysOn: TypeAlias = tuple[tuple[int, int], ...]

_KEPT = 256  # rows of bools, of each of two kinds: 33 MB at V = 131,072


class Ways:
    """Steps by tokens of what may be true; the caller holds a lock.

    merged: bool [V], the tokens that merges make.
    """

    def __init__(
        self, walk: Walk, neighbours: Neighbours, whole: WholeWords, merged: Bools
    ) -> None:
        self.start: WaysOn = ((OFF, walk.start),)
        self._walk, self._neighbours, self._whole = walk, neighbours, whole
        self._merged, self._is_merged = merged, merged.tolist()
        spellings: Spellings = walk.spellings
        self._words = spellings.word_of.tolist()
        self._spelled, self._tails = spellings.words, spellings.tails
        self._completion = Completion(walk, spellings, neighbours)
        self._headed = {headed[0]: headed[1:] for headed in spellings.headed}
        self._tail_of = {
            token: spellings.words[word][-1] - walk.characters.count
            for token, word in enumerate(self._words)
            if word >= 0 and spellings.words[word][-1] >= walk.characters.count
        }
        self._tailed = np.array(sorted(self._tail_of), np.int64)
        self._settles: dict[int, bool] = {}
        self._lively: dict[tuple[int, int, int], bool] = {}
        self._after: Kept[int, Bools] = Kept(_KEPT)
        self._cut_tokens: Kept[tuple[int, bool], tuple[Bools, list[int]]] = Kept(_KEPT)

    def ends(self, ways: WaysOn) -> bool:
        """Whether the text may end here, outside a character."""
        ends = self._whole.ends
        return any(node not in ends and self._walk.ends(states) for node, states in ways)

    def step(self, last: int, ways: WaysOn, begun: bytes, token: int) -> tuple[WaysOn, bytes]:
        """The ways behind `token`, none where the string is not live, and what it has begun.

        last: the token before, -1 at the start of a text; begun: what that has begun.
        """
        merged = self._is_merged[token]
        fits = merged and last >= 0 and self._neighbours.follows(last, token)
        if begun:
            behind, begun = self._complete(ways, begun, token) if fits else ({}, b"")
        else:
            behind = self._follow(ways, token, merged, fits)
            tail = self._tail_of.get(token)
            begun = b"" if tail is None else self._tails[tail]
        if begun:
            kinds = self._completion.kinds(token, begun)
            behind = {node: self._walk.narrowed(at, kinds) for node, at in behind.items()}
            live = [way for way in behind.items() if way[1] != NOTHING]
        else:
            live = [way for way in behind.items() if self._lives(token, *way)]
        if len(live) > 1:
            live.sort()
        return tuple(live), begun

    def allowed(self, last: int, ways: WaysOn, begun: bytes) -> tuple[Bools, list[int]]:
        """bool [V]: the tokens that `step` lets pass, but for those listed, which are to be tried
        one by one.
        """
        allowed = np.zeros(self._merged.size, np.bool_)
        if begun:
            followers = self._followers(last)
            some = self._completion.candidates(begun)
            return allowed, some[followers[some]].tolist()
        single: list[int] = []
        for node, states in ways:
            if node not in self._whole.ends:
                sure, unsure = self._tokens(states, True)
                allowed |= sure
                single += unsure
            if last >= 0 and node != WHOLE:
                sure, unsure = self._tokens(states, False)
                allowed |= sure & self._followers(last)
                single += unsure
                single += self._whole.ending(node)
        return allowed, single

    def _follow(self, ways: WaysOn, token: int, merged: bool, fits: bool) -> dict[int, int]:
        """The ways behind a token that begins with a character, by node."""
        word, walk, whole = self._words[token], self._walk, self._whole
        behind: dict[int, int] = {}
        if word < 0 or not (merged or token in whole.only):
            return behind
        symbols = self._spelled[word]
        for node, states in ways:
            if node not in whole.ends:
                cut = walk.follow(walk.step(states, symbols[0], True), symbols[1:])
                if cut:
                    after = whole.after(node, token, True)
                    behind[after] = walk.union(behind.get(after, NOTHING), cut)
            if fits and node != WHOLE:
                on = walk.follow(states, symbols)
                if on:
                    after = whole.after(node, token, False)
                    behind[after] = walk.union(behind.get(after, NOTHING), on)
        return behind

    def _complete(self, ways: WaysOn, begun: bytes, token: int) -> tuple[dict[int, int], bytes]:
        """The ways behind a token that goes on with a character that is begun."""
        head, kinds, tail = self._headed.get(token, (b"", (), b""))
        walk, begun = self._walk, begun + head
        character = decoded(begun)
        if not head or (not character and (kinds or tail)):
            return {}, b""
        behind: dict[int, int] = {}
        for node, states in ways:
            if character:
                kind = int(walk.characters.of[ord(character)])
                on = walk.follow(walk.resolved(states, kind), kinds)
                if tail and on:
                    on = walk.step(on, walk.characters.count + self._tails.index(tail), False)
            else:
                on = walk.narrowed(states, walk.possible(begun))
            after = self._whole.after(node, token, False)
            behind[after] = walk.union(behind.get(after, NOTHING), on)
        return behind, tail if character else begun

    def _lives(self, token: int, node: int, states: int) -> bool:
        """Whether what may be true behind a whole character comes true with some continuation.

        It does at once where the text may end or a cut may follow: nothing behind it matters then.
        """
        if node not in self._whole.ends and self._settled(states):
            return True
        if node == WHOLE or states == NOTHING:
            return False
        key = (token, node, states)
        known = self._lively.get(key)
        if known is None:
            sure, unsure = self._tokens(states, False)
            followers = self._followers(token)
            self._lively[key] = known = bool((sure & followers).any()) or any(
                followers[other] and self._goes_on(node, states, other) for other in unsure
            )
        return known

    def _goes_on(self, node: int, states: int, token: int) -> bool:
        """`_lives` one token later."""
        behind = self._walk.follow(states, self._spelled[self._words[token]])
        return self._lives(token, self._whole.after(node, token, False), behind)

    def _settled(self, states: int) -> bool:
        known = self._settles.get(states)
        if known is None:
            known = states != NOTHING and (self._walk.ends(states) or self._walk.may_cut(states))
            self._settles[states] = known
        return known

    def _tokens(self, states: int, cut: bool) -> tuple[Bools, list[int]]:
        """The tokens that the cuts allow, and those that must be tried one by one, since what they
        leave open is settled by the tokens that may follow.
        """
        found = self._cut_tokens.get((states, cut))
        if found is None:
            behind = self._walk.tokens(states, cut)
            sure = (behind != NOTHING) & self._merged
            unsure: list[int] = []
            for token in self._tailed[sure[self._tailed]].tolist():
                tail = self._tails[self._tail_of[token]]
                guesses = self._walk.guesses(int(behind[token]))
                sure[token] = bool(guesses & self._completion.kinds(token, tail))
            for after in np.unique(behind[sure]).tolist():
                if not self._walk.guesses(after) and not self._settled(after):
                    unsure += np.flatnonzero(sure & (behind == after)).tolist()
            sure[unsure] = False
            for token in self._whole.only if cut else ():
                sure[token] = self._settled(int(behind[token]))
            found = self._cut_tokens.put((states, cut), (sure, unsure))
        return found

    def _followers(self, token: int) -> Bools:
        found = self._after.get(token)
        return self._after.put(token, self._neighbours.after(token)) if found is None else found
