"""A text that grows by bytes and can be taken back, with the law of what comes next."""

from __future__ import annotations

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.middleware.bytes.elements import Text, log_cover_mass
from midstream.middleware.bytes.law import ByteLaw, byte_law
from midstream.middleware.bytes.reading import Reader, Task
from midstream.middleware.errors import InputError


class ByteState:
    """Where one text stands, of `ByteModel.state`. What the model has read of it stays read.

    Each push is one forward of the model at most, of about one token under `canonical`: with what a
    byte needs that is read which its likely followers will need, so that theirs may be none. Under
    `all` bytes that are pushed together are a few forwards.
    reader: counts the forwards.
    """

    def __init__(
        self,
        reader: Reader,
        text: Text,
        vocabulary: ByteSortedVocabulary,
        *,
        lead: bytes,
        byte_temperature: float,
    ) -> None:
        self.reader = reader
        self._text = text
        self._vocabulary = vocabulary
        self._byte_temperature = byte_temperature
        self._pushed = bytearray()
        self._lead = len(lead)
        reader.run([text.feed(lead)])

    @property
    def text(self) -> bytes:
        """What was pushed."""
        return bytes(self._pushed)

    def push(self, text: bytes) -> None:
        """Go on with one byte, or with several."""
        self._pushed += text
        self.reader.run([self._text.feed(text)])

    def rollback(self, length: int) -> None:
        """Take back what follows the first `length` bytes.

        Raises InputError for more bytes than there are.
        """
        if not 0 <= length <= len(self._pushed):
            raise InputError("length", length, f"a length from 0 to {len(self._pushed)}")
        del self._pushed[length:]
        self._text.rollback(self._lead + length)

    def heads(self) -> list[tuple[int, ...]]:
        """The token strings that the text may stand in, each to where it ends in the text."""
        self.reader.run([self._text.read()])
        return [tuple(self._text.path(head.path)) for head in self._text.standing()]

    def law(self) -> ByteLaw:
        """Of what comes next."""
        self.reader.run([self._text.read()])
        return text_law(self._text, self._vocabulary).tempered(self._byte_temperature)


def text_law(text: Text, vocabulary: ByteSortedVocabulary) -> ByteLaw:
    """The law of what follows a text that has been read."""
    standing = text.standing()
    return byte_law(
        standing,
        log_mass=log_cover_mass(standing, vocabulary),
        log_pruned=text.log_pruned,
        target=text.target,
        method=text.method,
    )


def law_of(text: Text, vocabulary: ByteSortedVocabulary, prefix: bytes) -> Task[ByteLaw]:
    """Feed an empty text, and the law of what follows."""
    yield from text.feed(prefix)
    return text_law(text, vocabulary)
