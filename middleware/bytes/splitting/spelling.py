"""Tokens as characters' classes: what a pre-tokenizer sees of each."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.splitting.characters import Characters

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Spellings:
    """The tokens of a vocabulary as symbols: a class below C, or C + the place of a tail.

    A tail is the beginning of a character at the end of a token, a head the rest of one at its
    beginning: such a token only follows a tail.

    word_of: int32 [V], which of `words` a token is; -1 for one that spells nothing, that is no
        piece of UTF-8, or that begins with a head.
    words: the symbols of each distinct word, by length, the longest first.
    columns: symbol j of all words that are longer than j, int32.
    headed: of tokens that begin with a head: (token, head, classes, tail), else apart.
    tails: the distinct tails.
    """

    word_of: npt.NDArray[np.int32]
    words: tuple[tuple[int, ...], ...]
    columns: tuple[npt.NDArray[np.int32], ...]
    headed: tuple[tuple[int, bytes, tuple[int, ...], bytes], ...]
    tails: tuple[bytes, ...]


def read_spellings(token_bytes: Sequence[bytes], characters: Characters) -> Spellings:
    """Read all tokens; the cost is a pass over their characters."""
    parts = [_parts(spelling) for spelling in token_bytes]
    classes = _classes([text for _, text, _ in parts], characters)
    tails = sorted({tail for _, _, tail in parts if tail})
    symbol_of: dict[bytes, tuple[int, ...]] = {b"": ()}
    symbol_of.update({tail: (characters.count + at,) for at, tail in enumerate(tails)})
    keys: dict[tuple[bytes, bytes], list[int]] = {}
    headed = []
    for token, ((head, _, tail), kinds) in enumerate(zip(parts, classes, strict=True)):
        if head is None or not token_bytes[token]:
            continue
        if head:
            headed.append((token, head, tuple(kinds), tail))
        else:
            keys.setdefault((kinds, tail), []).append(token)
    order = sorted(keys, key=lambda key: -len(key[0]) - bool(key[1]))
    words = tuple([(*kinds, *symbol_of[tail]) for kinds, tail in order])
    word_of = np.full(len(token_bytes), -1, np.int32)
    for place, key in enumerate(order):
        word_of[keys[key]] = place
    return Spellings(word_of, words, _columns(words), tuple(headed), tuple(tails))


def completions(begun: bytes) -> tuple[int, int] | None:
    """The code points that a begun character may become, lowest and highest; None for none."""
    first = begun[0]
    length = 2 if 0xC2 <= first <= 0xDF else 3 if first >> 4 == 14 else 4
    if not (0xC2 <= first <= 0xF4) or len(begun) > length:
        return None
    low, high = _value(begun, 0x80, length), _value(begun, 0xBF, length)
    low = max(low, (0, 0, 0x80, 0x800, 0x10000)[length])
    high = min(high, 0x10FFFF)
    if any(byte >> 6 != 2 for byte in begun[1:]) or low > high:
        return None
    return None if 0xD800 <= low and high < 0xE000 else (low, high)


def _value(begun: bytes, filler: int, length: int) -> int:
    full = begun + bytes([filler]) * (length - len(begun))
    value = full[0] & (0xFF >> (length + 1))
    for byte in full[1:]:
        value = value << 6 | byte & 0x3F
    return value


def _parts(spelling: bytes) -> tuple[bytes | None, str, bytes]:
    """Head, whole characters and tail; None for the head where these bytes are no UTF-8."""
    size = 0
    while size < len(spelling) and spelling[size] >> 6 == 2:
        size += 1
    try:
        text, consumed = codecs.utf_8_decode(spelling[size:], "strict", False)
    except UnicodeDecodeError:
        return None, "", b""
    tail = spelling[size + consumed :]
    if size > 3 or (tail and completions(tail) is None):
        return None, "", b""
    return spelling[:size], text, tail


def _classes(texts: list[str], characters: Characters) -> list[bytes]:
    points = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    kinds = characters.of[points].tobytes()
    found, at = [], 0
    for text in texts:
        found.append(kinds[at : at + len(text)])
        at += len(text)
    return found


def _columns(words: tuple[tuple[int, ...], ...]) -> tuple[npt.NDArray[np.int32], ...]:
    longest = len(words[0]) if words else 0
    columns: list[list[int]] = [[] for _ in range(longest)]
    for word in words:
        for place, symbol in enumerate(word):
            columns[place].append(symbol)
    return tuple([np.array(column, np.int32) for column in columns])
