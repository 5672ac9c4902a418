"""The elements of a cover: listed, and drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.sorted_row import log_sum
from midstream.middleware.bytes.heads import Places
from midstream.middleware.bytes.law import Method, Standing, Target
from midstream.middleware.bytes.reading import Branches, Task
from midstream.middleware.random import Source

Float = npt.NDArray[np.float64]

END = -1
"""In the place of a token: the text ends."""

STAYS = -2
"""In the place of a token: none, the head itself is drawn."""


class Text(Protocol):
    """A text as its heads: `CoverText` or `BeamText`."""

    @property
    def target(self) -> Target:
        """What is summed."""

    @property
    def method(self) -> Method:
        """How the cover is made."""

    @property
    def places(self) -> Places:
        """Which token strings count."""

    def place(self, node: int) -> Any:
        """Where the token string of a head stands."""

    @property
    def log_pruned(self) -> float:
        """Log of a bound of the mass that is left out."""

    @property
    def branches(self) -> Branches:
        """What was read."""

    def __len__(self) -> int:
        """Bytes pushed."""

    def feed(self, text: bytes) -> Task[None]:
        """Push bytes, and read what is needed."""

    def read(self) -> Task[None]:
        """Read what is needed."""

    def rollback(self, length: int) -> None:
        """Take back what was pushed after the first `length` bytes."""

    def standing(self) -> Sequence[Standing]:
        """The heads, which must have been read."""

    def path(self, node: int) -> list[int]:
        """The tokens of a head."""


def log_cover_masses(standing: Sequence[Standing], vocabulary: ByteSortedVocabulary) -> list[float]:
    """Log mass of the elements of each head: of the head itself where it ends with the text, else
    of what goes on from it over the text's end.
    """
    return [
        head.log_p + head.row.log_sum(*_stretch(head, vocabulary)) if head.trie else head.log_p
        for head in standing
    ]


def log_cover_mass(standing: Sequence[Standing], vocabulary: ByteSortedVocabulary) -> float:
    """Log mass of the cover."""
    return log_sum(log_cover_masses(standing, vocabulary))


def list_cover(text: Text, vocabulary: ByteSortedVocabulary) -> list[tuple[tuple[int, ...], float]]:
    """The token strings of positive probability with their log P, the most probable first."""
    found: list[tuple[tuple[int, ...], float]] = []
    for head in text.standing():
        path = tuple(text.path(head.path))
        if not head.trie:
            found.append((path, head.log_p))
            continue
        begin, end = _stretch(head, vocabulary)
        masses = (head.log_p + head.row.log_masses(begin, end)).tolist()
        tokens = vocabulary.order[begin:end].tolist()
        found.extend(((*path, t), p) for t, p in zip(tokens, masses, strict=True) if p > -math.inf)
    return sorted(found, key=lambda element: -element[1])


def draw_element(
    standing: Sequence[Standing], vocabulary: ByteSortedVocabulary, source: Source
) -> tuple[Standing, int] | None:
    """One element with its share of the cover's mass: a head, and a token or STAYS. None for an
    empty cover.
    """
    head = _choose(standing, log_cover_masses(standing, vocabulary), source)
    if head is None:
        return None
    if not head.trie:
        return head, STAYS
    return head, _token(head, *_stretch(head, vocabulary), vocabulary, source)


def draw_next(
    standing: Sequence[Standing], vocabulary: ByteSortedVocabulary, source: Source
) -> tuple[Standing, int] | None:
    """One way to go on from a text, with its share: a head and a token, or END. None for no way.

    Whatever the first byte, and the end, weigh as in the law of the next byte.
    """
    ways, masses = _ways(standing, vocabulary)
    at = _choose_index(masses, source)
    if at < 0:
        return None
    head = ways[at]
    if at and ways[at - 1] is head:
        return head, END
    span = _stretch(head, vocabulary) if head.trie else (0, vocabulary.spelled)
    return head, _token(head, *span, vocabulary, source)


def _ways(
    standing: Sequence[Standing], vocabulary: ByteSortedVocabulary
) -> tuple[list[Standing], list[float]]:
    """The ways on from a text and their log masses: of each head its tokens, and behind that its
    end where it has one.
    """
    ways: list[Standing] = []
    masses: list[float] = []
    for head, log_mass in zip(standing, log_cover_masses(standing, vocabulary), strict=True):
        ways.append(head)
        inside = 0.0 if head.trie else head.row.log_sum(0, vocabulary.spelled)
        masses.append(log_mass + inside)
        if head.may_end:
            ways.append(head)
            masses.append(head.log_p + head.row.log_end())
    return ways, masses


def _stretch(head: Standing, vocabulary: ByteSortedVocabulary) -> tuple[int, int]:
    return int(vocabulary.ends[head.trie]), int(vocabulary.high[head.trie])


def _token(
    head: Standing, begin: int, end: int, vocabulary: ByteSortedVocabulary, source: Source
) -> int:
    return int(vocabulary.order[begin + source.choose(head.row.weights(begin, end))])


def _choose(
    standing: Sequence[Standing], log_masses: list[float], source: Source
) -> Standing | None:
    at = _choose_index(log_masses, source)
    return None if at < 0 else standing[at]


def _choose_index(log_masses: list[float], source: Source) -> int:
    """An index with its share of the mass, -1 where there is none or it is not a number."""
    masses = np.asarray(log_masses)
    top = float(np.maximum.reduce(masses, initial=-np.inf))
    return source.choose(np.exp(masses - top)) if math.isfinite(top) else -1


def log_going_mass(standing: Sequence[Standing], vocabulary: ByteSortedVocabulary) -> float:
    """Log mass of what goes on with a byte, or ends: what the law of the next byte divides."""
    return log_sum(_ways(standing, vocabulary)[1])
