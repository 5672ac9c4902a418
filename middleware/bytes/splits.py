"""A prompt as fixed ids and a text, with the token strings that the text may stand in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from midstream.middleware.bytes.canonical import Canonical, Place
from midstream.middleware.bytes.heads import Heads, Places
from midstream.middleware.bytes.law import Target
from midstream.middleware.bytes.tail import added_ids, byte_sorted, cut_place, text_start
from midstream.middleware.bytes.undecidable import Undecidable
from midstream.middleware.errors import InputError
from midstream.middleware.vocabulary import Vocabulary

READ_BYTES = 1024
"""How much of the end of a text is read as bytes, 60 us each. No end of a prompt is undecided for
that long, unless one word is.
"""


@dataclass(frozen=True, slots=True)
class Split:
    """A prompt as fixed ids and a text: `fixed` is never read as text.

    prompt: as it came. heads: of the text under the target "canonical", and `cut` the node from
        which the model is asked, any that all heads share; None where the text's own tokens are
        kept up to `fixed` and a beam finds the rest.
    """

    prompt: tuple[int, ...]
    fixed: tuple[int, ...]
    text: bytes
    heads: Heads | None = None
    cut: int = 0

    @property
    def kept(self) -> tuple[int, ...]:
        """The ids that are read as they are."""
        trunk = [] if self.heads is None else self.heads.path(self.cut)
        return (*self.fixed, *trunk)

    @property
    def whole(self) -> bool:
        """Whether nothing is left to be drawn."""
        if self.heads is None:
            return not self.text
        live = self.heads.live
        return len(live) == 1 and live[0].trie == 0 and live[0].node == self.cut


class _StartsAt:
    """Places of which the first is another."""

    def __init__(self, places: Canonical, place: Place) -> None:
        self.vocabulary = places.vocabulary
        self.step = places.step
        self.mask = places.mask
        self.may_end = places.may_end
        self._place = place

    def start(self) -> Place:
        return self._place


class Splitter:
    """Tells what of a prompt is fixed.

    tokenizer, target, canonical: see `Healer`. canonical, undecided: as they came out.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: Vocabulary,
        *,
        target: Target = "canonical",
        canonical: Canonical | None = None,
    ) -> None:
        if target not in ("canonical", "all"):
            raise InputError("target", target, '"canonical" or "all"')
        self.undecided: str | None = None
        self.canonical = canonical if target == "canonical" else None
        self._vocabulary = vocabulary
        self._walls = added_ids(tokenizer)
        self._sorted = byte_sorted(vocabulary)
        if target == "canonical" and canonical is None:
            try:
                self.canonical = _canonical_of(tokenizer, vocabulary)
            except Undecidable as why:
                self.undecided = str(why)

    def split(self, prompt: Sequence[int]) -> Split:
        """A prompt's fixed ids, and its text with the token strings that it may stand in.

        Raises InputError for an empty prompt and ids that are not of the vocabulary.
        """
        if not len(prompt):
            raise InputError("prompt", "an empty prompt", "at least one id")
        start = text_start(prompt, self._vocabulary, self._walls)
        if self.canonical is not None and start < len(prompt):
            found = self._canonical_split(prompt, start)
            if found is not None:
                return found
        place = cut_place(prompt, self._vocabulary, self._walls)
        text = self._vocabulary.decode(prompt[place:])
        return Split(tuple(prompt), tuple(prompt[:place]), text)

    def _canonical_split(self, prompt: Sequence[int], start: int) -> Split | None:
        """None where the text is nothing that the tokenizer would make, or has no id to stay."""
        assert self.canonical is not None
        start, places = self._near(prompt, start, self.canonical)
        text = self._vocabulary.decode(prompt[start:])
        heads = Heads(places, self._sorted)
        for byte in text:
            heads.push(byte)
        if not heads.live:
            return None
        root = heads.root()
        if not start and not root:
            return None
        return Split(tuple(prompt), tuple(prompt[:start]), text, heads, root)

    def _near(self, prompt: Sequence[int], start: int, places: Canonical) -> tuple[int, Places]:
        """Where the text is read from: of a long one the ids before its last bytes stay, if they
        are what the tokenizer makes.
        """
        stop, length = len(prompt), 0
        while stop > start and length < READ_BYTES:
            stop -= 1
            length += len(self._vocabulary.token_bytes[prompt[stop]])
        place = places.start()
        for token in prompt[start:stop]:
            behind = places.step(place, token)
            if behind is None:
                return start, places
            place = behind
        return stop, _StartsAt(places, place)


@lru_cache(maxsize=8)
def _canonical_of(tokenizer: Any, vocabulary: Vocabulary) -> Canonical:
    """Made once for a tokenizer object: it takes a second or two, and callers come and go."""
    return Canonical.from_tokenizer(tokenizer, vocabulary)
