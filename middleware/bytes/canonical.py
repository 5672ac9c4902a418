"""Which token strings a tokenizer would itself make.

A token string T is *live* if it is a beginning of the encoding of its bytes with something behind
them; it may end where it is the encoding of its bytes. Every token must be one that the merges make
of its own bytes, every two beside each other in one piece must stay as they are, and the
pre-tokenizer must be able to cut where the tokens say: all three are followed token by token, with
what the pre-tokenizer has not decided yet kept as a set of possibilities.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any, NamedTuple

from midstream.kernels.bitmask import Mask, pack_mask
from midstream.middleware.bytes.composition import Composition
from midstream.middleware.bytes.guards import Guard
from midstream.middleware.bytes.kept import Kept
from midstream.middleware.bytes.neighbours import Neighbours
from midstream.middleware.bytes.rules import Rules
from midstream.middleware.bytes.splitting.cuts import SPELLED, chain_of
from midstream.middleware.bytes.splitting.spelling import read_spellings
from midstream.middleware.bytes.splitting.walk import Walk
from midstream.middleware.bytes.tokenizer_rules import read_rules, rules_key
from midstream.middleware.bytes.undecidable import Undecidable
from midstream.middleware.bytes.walls import Walls
from midstream.middleware.bytes.ways import Ways, WaysOn
from midstream.middleware.bytes.whole_words import WholeWords
from midstream.middleware.vocabulary import Vocabulary

__all__ = ["Canonical", "Place", "Undecidable"]

_KEPT = 1024  # masks: 4 MB at V = 32,000, 16 MB at 131,072
_TOKENIZERS = 4


class Place(NamedTuple):
    """Where a token string stands for the tokenizer. A value: of equal places all goes on alike.

    last: the token before, -1 at the start of a text.
    ways: what may be true of the cuts so far, in numbers of the Canonical that made the place.
    begun: bytes of a character that is not complete.
    guards: the states of the guards.
    """

    last: int
    ways: WaysOn
    begun: bytes
    guards: tuple[Hashable, ...]


class Canonical:
    """Which token strings a tokenizer would itself make. Immutable to its users, shared by threads.

    vocabulary: the bytes of the ids.
    virtual: b" " where the tokenizer puts a space before every text, else b"". A text's tokens
        spell that space too (`vocabulary.spelled`): only strings that begin with it are live.

    Texts of special tokens are walls: a string of other tokens that spells one is not live, since
    the tokenizer would read the special token. An ordinary added token is live between two texts
    that are encoded each for itself; one that strips white space around it never is, nor is any
    where the tokenizer puts a space before a text.
    """

    def __init__(self, vocabulary: Vocabulary, rules: Rules) -> None:
        self.vocabulary = vocabulary
        self.virtual = b"" if vocabulary.prefix_space == "never" else b" "
        token_bytes = vocabulary.token_bytes
        chain, characters = chain_of(
            rules.cuts,
            rules.engine,
            spelled=rules.spelled,
            marked=rules.marked,
            prefix_space=vocabulary.prefix_space,
        )
        spelled = characters.atoms[SPELLED] if rules.spelled is not None else 0
        walk = Walk(chain, characters, read_spellings(token_bytes, characters), ~spelled)
        merged = rules.merges.reachable.copy()
        for token in rules.single_bytes:  # a character with a token is never spelled by its byte
            if token_bytes[token].isascii():
                merged[token] &= not spelled >> int(characters.of[token_bytes[token][0]]) & 1
        merged[list(vocabulary.special_ids)] = False
        whole = WholeWords(rules.merges, token_bytes, rules.whole - set(vocabulary.special_ids))
        self._ways = Ways(walk, Neighbours(rules.merges), whole, merged)
        added = frozenset() if self.virtual else rules.added - set(vocabulary.special_ids)
        self._added = added
        self._guards: list[Guard] = []
        if rules.walls:
            self._guards.append(Walls(rules.walls, token_bytes, added))
        if rules.composed:
            self._guards.append(Composition(token_bytes, added))
        self._lock = threading.RLock()
        self._masks: Kept[Place, Mask] = Kept(_KEPT)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, vocabulary: Vocabulary) -> Canonical:
        """Read a tokenizer; the same object for the same tokenizer, of the last few.

        vocabulary: the one made of the tokenizer, of the model's size.

        Raises Undecidable with the reason where it cannot be told which strings it makes.
        """
        key = (vocabulary.fingerprint, vocabulary.prefix_space, rules_key(tokenizer))
        with _known_lock:
            found = _known.get(key)
            if found is None:
                made = cls(vocabulary, read_rules(tokenizer, len(vocabulary)))
                found = _known.put(key, made)
            return found

    def start(self) -> Place:
        """The beginning of a text: after BOS, a sentinel of a chat, any fixed id."""
        return Place(-1, self._ways.start, b"", tuple([guard.start() for guard in self._guards]))

    def step(self, place: Place, token: int) -> Place | None:
        """The place behind one more token; None where the string would not be live."""
        if not 0 <= token < len(self.vocabulary):
            return None
        with self._lock:
            return self._step(place, token)

    def may_end(self, place: Place) -> bool:
        """Whether the string is the encoding of its bytes, so that the text may stop here."""
        with self._lock:
            return not place.begun and self._ways.ends(place.ways)

    def mask(self, place: Place) -> Mask:
        """uint32 [W], read-only: bit t where `step(place, t)` is not None; the bits of the end of
        sequence ids where `may_end(place)`; those of other special ids are 0.
        """
        with self._lock:
            mask = self._masks.get(place)
            return self._masks.put(place, self._mask(place)) if mask is None else mask

    def _step(self, place: Place, token: int) -> Place | None:
        last = token
        if token in self._added:
            if not self.may_end(place):
                return None
            last, ways, begun = -1, self._ways.start, b""
        else:
            ways, begun = self._ways.step(place.last, place.ways, place.begun, token)
            if not ways:
                return None
        if not self._guards:
            return Place(last, ways, begun, ())
        guards = []
        for guard, state in zip(self._guards, place.guards, strict=True):
            after = guard.step(state, token)
            if after is None:
                return None
            guards.append(after)
        return Place(last, ways, begun, tuple(guards))

    def _mask(self, place: Place) -> Mask:
        allowed, single = self._ways.allowed(place.last, place.ways, place.begun)
        ends = self.may_end(place)
        if ends and self._added:
            allowed[list(self._added)] = True
        for guard, state in zip(self._guards, place.guards, strict=True):
            allowed &= ~guard.refused(state)
        for token in single:
            allowed[token] = self._step(place, token) is not None
        if ends:
            allowed[list(self.vocabulary.eos_ids)] = True
        mask = pack_mask(allowed)
        mask.setflags(write=False)
        return mask


_known: Kept[tuple[str, str, str], Canonical] = Kept(_TOKENIZERS)
_known_lock = threading.Lock()
