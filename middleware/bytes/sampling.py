"""Bytes drawn from the law of the next byte, one token at a time.

An element of the prompt's cover is drawn with its exact probability, and ordinary tokens follow: a
forward for each token, not for each byte. A token that does not count (one the tokenizer would not
have made there, or a special one) is the share of the mass that the law of the next byte divides
among the others: then the way on is drawn again, from all heads of the text so far. So each byte is
drawn from the law of the next byte given those before it: given the bytes, the token string under
way is always one of the cover's, each with its share.
"""

from __future__ import annotations

from collections.abc import Callable

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.next_byte import ENDS
from midstream.kernels.row import Row
from midstream.middleware.bytes.elements import END, STAYS, Text, draw_element, draw_next
from midstream.middleware.bytes.law import ByteLaw, Standing
from midstream.middleware.bytes.reading import Task, Wanted
from midstream.middleware.bytes.state import text_law
from midstream.middleware.random import Source
from midstream.middleware.vocabulary import Vocabulary

Sources = Callable[[int], Source]
"""The source of each draw, by its number."""


def sample_bytes(
    text: Text, vocabulary: ByteSortedVocabulary, prefix: bytes, count: int, sources: Sources
) -> Task[bytes]:
    """What follows `prefix`: `count` bytes, or fewer where the text ends or nothing goes on.

    text: empty. sources: of draws 0 (the cover's), 1, 2, ...
    """
    yield from text.feed(prefix)
    drawn = draw_element(text.standing(), vocabulary, sources(0))
    walk = _Walk(text, count, sources)
    while drawn is not None and drawn[1] != END and len(walk.out) < count:
        left = yield from walk.follow(*drawn)
        if not left:
            break
        yield from text.feed(bytes(walk.out[len(text) - len(prefix) :]))
        drawn = draw_next(text.standing(), vocabulary, walk.source())
    return bytes(walk.out[:count])


class _Walk:
    """Ordinary tokens, drawn from the model's whole law."""

    def __init__(self, text: Text, count: int, sources: Sources) -> None:
        self._text = text
        self._tokens: Vocabulary = text.places.vocabulary
        self._count = count
        self._sources = sources
        self._draws = 1
        self.out = bytearray()

    def source(self) -> Source:
        """Of the next draw."""
        self._draws += 1
        return self._sources(self._draws - 1)

    def follow(self, head: Standing, token: int) -> Task[bool]:
        """Go on with a head and its next token. True where a token came that does not count; False
        at the end, or where there are bytes enough.
        """
        branches, places = self._text.branches, self._text.places
        node, place = branches.node[head.path], self._text.place(head.path)
        logits, written = head.row.logits, head.written
        while True:
            if token != STAYS:
                self.out += self._tokens.token_bytes[token][written:]
                written = 0
                if len(self.out) >= self._count:
                    return False
                place = places.step(place, token)
                answer = yield Wanted([node], [token])
                node, logits = answer.nodes[0], answer.logits[0]
            row = Row(logits, None, branches.inverse_temperature)
            if not row.finite:
                return False
            token = int(self.source().tokens(row, 1)[0])
            if token in self._tokens.eos_ids:
                return not places.may_end(place)
            if token >= len(self._tokens) or places.step(place, token) is None:
                return True


def sample_by_bytes(
    text: Text,
    vocabulary: ByteSortedVocabulary,
    prefix: bytes,
    count: int,
    sources: Sources,
    temperature: float,
) -> Task[bytes]:
    """What follows `prefix`, a byte at a time from the tempered law: a forward for most."""

    def choose(law: ByteLaw, length: int) -> int:
        return sources(length).choose(law.tempered(temperature).p)

    return _byte_by_byte(text, vocabulary, prefix, count, choose)


def greedy_bytes(
    text: Text, vocabulary: ByteSortedVocabulary, prefix: bytes, count: int
) -> Task[bytes]:
    """What follows `prefix`, the most probable byte each time; of equal ones the lowest."""

    def choose(law: ByteLaw, length: int) -> int:
        return int(law.log_p.argmax())

    return _byte_by_byte(text, vocabulary, prefix, count, choose)


def _byte_by_byte(
    text: Text,
    vocabulary: ByteSortedVocabulary,
    prefix: bytes,
    count: int,
    choose: Callable[[ByteLaw, int], int],
) -> Task[bytes]:
    out = bytearray()
    yield from text.feed(prefix)
    while len(out) < count:
        law = text_law(text, vocabulary)
        if law.status == "dead":
            break
        byte = choose(law, len(out))
        if byte == ENDS:
            break
        out.append(byte)
        if len(out) < count:
            yield from text.feed(bytes([byte]))
    return bytes(out)
