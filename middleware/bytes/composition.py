"""Normal form C: a tokenizer that composes text never makes tokens of text that is not composed."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.kept import Kept
from midstream.middleware.bytes.splitting.spelling import completions

Bools = npt.NDArray[np.bool_]
_State: TypeAlias = tuple[str, bytes]
_KEPT = 256


@lru_cache(maxsize=1)
def joining() -> tuple[frozenset[str], frozenset[str]]:
    """Characters that may change what stands before them (or change places with it), and those
    that may be changed by what comes behind.
    """
    leading, vowel, trailing = range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3)
    second = set(map(chr, (*vowel, *trailing)))
    first = set(map(chr, (*leading, *range(0xAC00, 0xD7A4, 28))))
    for point in range(0x110000):
        letter = chr(point)
        parts = unicodedata.decomposition(letter).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            first.add(chr(int(parts[0], 16)))
            second.add(chr(int(parts[1], 16)))
        if unicodedata.combining(letter):
            second.add(letter)
    return frozenset(second), frozenset(first | second)


class Composition:
    """Refuses token strings whose text the tokenizer would compose to another.

    The state is the text from the last character on that nothing before it can change, "" where
    nothing behind can change it either, and the bytes of a character that is not complete. The
    tokenizer's own normaliser is asked.

    added: tokens that part texts which are composed each for itself.
    """

    def __init__(self, token_bytes: Sequence[bytes], added: frozenset[int]) -> None:
        from tokenizers import normalizers

        self._normal: Callable[[str], str] = normalizers.NFC().normalize_str
        self._token_bytes = token_bytes
        self._added = added
        self._kept: Kept[_State, Bools] = Kept(_KEPT)
        self._always = np.zeros(len(token_bytes), np.bool_)
        self._open: list[int] = []
        self._headed: list[int] = []
        for token, spelling in enumerate(token_bytes):
            self._sort(token, spelling)

    def start(self) -> _State:
        """No text yet."""
        return "", b""

    def step(self, state: Hashable, token: int) -> Hashable | None:
        """The state behind a token."""
        assert isinstance(state, tuple)
        context, begun = state
        if token in self._added:
            return self.start()
        return self._read(context, begun + self._token_bytes[token])

    def refused(self, state: Hashable) -> Bools:
        """Tokens that begin in a way that hangs on the text before are tried one by one."""
        assert isinstance(state, tuple)
        context, begun = state
        known = self._kept.get((context, begun))
        if known is None:
            known = self._always.copy()
            for token in self._headed if begun else self._open:
                known[token] = self.step(state, token) is None
            self._kept.put((context, begun), known)
        return known

    def _sort(self, token: int, spelling: bytes) -> None:
        """Tell whether a token is refused always, or by what stands before it."""
        if token in self._added:
            return
        if spelling and spelling[0] >> 6 == 2:
            self._headed.append(token)
            return
        try:
            text, size = codecs.utf_8_decode(spelling, "strict", False)
        except UnicodeDecodeError:
            return
        if (text and text[0] in joining()[0]) or (not text and spelling and not _safe(spelling)):
            self._open.append(token)
        elif text.isascii() and size == len(spelling):
            return
        else:
            self._always[token] = self._read("", spelling) is None

    def _read(self, context: str, spelling: bytes) -> _State | None:
        try:
            text, size = codecs.utf_8_decode(spelling, "strict", False)
        except UnicodeDecodeError:
            return None
        begun = spelling[size:]
        if text:
            context += text
            if not context.isascii() and self._normal(context) != context:
                return None
            second, changeable = joining()
            last = len(context) - 1
            while last and context[last] in second:
                last -= 1
            context = context[last:]
            if len(context) == 1 and context not in changeable:
                context = ""
        if begun and not _safe(begun):
            bounds = completions(begun)
            if bounds is None or not any(
                self._normal(context + chr(point)) == context + chr(point)
                for point in range(bounds[0], bounds[1] + 1)
                if not 0xD800 <= point < 0xE000
            ):
                return None
        return context, begun


@lru_cache(maxsize=4096)
def _safe(begun: bytes) -> bool:
    """Whether some completion is a character that stays as it is, whatever stands before it."""
    bounds = completions(begun)
    if bounds is None:
        return False
    return any(
        not 0xD800 <= point < 0xE000
        and chr(point) not in joining()[0]
        and unicodedata.is_normalized("NFC", chr(point))
        for point in range(bounds[0], bounds[1] + 1)
    )
