"""Counter-based randomness: every number is a pure function of (seed, sequence, position, purpose,
index).

No generator has a state that anybody shares, so a result does not depend on batch, order, threads
or host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from midstream.kernels.philox import (
    Words,
    half_open_uniforms,
    open_uniforms,
    philox_first_words,
    philox_keyed_words,
    philox_words,
)
from midstream.kernels.row import Row
from midstream.middleware.errors import InputError

PURPOSES = {"token": 0, "phantom": 1, "resample": 2, "proposal": 3, "draft": 4, "residual": 5}
"""What a number is for, with its counter word. Different purposes never share noise.
Codes are for ever.
"""

Float = npt.NDArray[np.float64]

_POSITIONS = 64
"""Of a sequence, whose numbers are made at once: a few cost as much as one."""


class Stream:
    """The random numbers of one position of one sequence.

    seed: 64 bits, the Philox key. sequence: 32 bits, which sequence of the request (never a row
        number).
    position: how many tokens were generated before.
    """

    __slots__ = ("position", "seed", "sequence")

    def __init__(self, seed: int, sequence: int = 0, position: int = 0) -> None:
        for name, value, bits in (
            ("seed", seed, 64),
            ("sequence", sequence, 32),
            ("position", position, 32),
        ):
            if not 0 <= value < 1 << bits:
                raise InputError(name, value, f"an integer from 0 to 2^{bits} - 1")
        self.seed = seed
        self.sequence = sequence
        self.position = position

    def words(self, purpose: str, n: int, start: int = 0) -> Words:
        """Random 32-bit words `start` to `start + n`: uint32 [n]."""
        code = PURPOSES.get(purpose)
        if code is None:
            raise InputError("purpose", purpose, "one of " + ", ".join(PURPOSES))
        return philox_words(self.seed, self.position, self.sequence, code, n, start)

    def uniforms(self, purpose: str, n: int, start: int = 0) -> Float:
        """Uniforms in [0, 1) for choices: float64 [n], equal to Triton's `tl.rand`.

        31 random bits, rounded to float32: near 1 they are 6e-8 apart, near 0 2^-31; 0 is possible.

        Asking for more never changes the first ones.
        """
        return half_open_uniforms(self.words(purpose, n, start))

    def open_uniforms(self, purpose: str, n: int, start: int = 0) -> Float:
        """Uniforms in (0, 1), (word + 0.5) / 2^32, for use under a logarithm: float64 [n]."""
        return open_uniforms(self.words(purpose, n, start))


def sequence_of(ids: Sequence[int], occurrence: int = 0) -> int:
    """The 32-bit sequence number of a prompt: a hash of its ids and its how-manieth occurrence."""
    data = np.asarray([occurrence, *ids], np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little")


@lru_cache(maxsize=4096)
def particle_sequence(sequence: int, particle: int) -> int:
    """The 32-bit sequence number of one particle of a sequence; particle 0 keeps its sequence's."""
    if particle == 0:
        return sequence
    # The tag keeps a particle apart from every prompt, which has no negative ids.
    return sequence_of((-1, sequence), particle)


class Source(Protocol):
    """Where a strategy gets its randomness from: the primitives that every strategy is made of.

    `StreamSource` stands behind it in production; a test that enumerates a strategy branches here
    instead.
    """

    def choose(self, weights: Float) -> int:
        """One index with probability weights[i] / sum(weights). weights: float64 [n], not all 0."""

    def tokens(self, row: Row, count: int) -> npt.NDArray[np.int64]:
        """`count` independent tokens from what is left of a row, which must have mass:
        int64 [count].
        """

    def phantoms(self, live: float, count: int) -> Sequence[float]:
        """Geometric counts with P(k) = live (1 - live)^k, k = 0, 1, ...: [count].

        The rejects that a run with replacement meets among tokens already taken out, before each of
        its next draws from the share `live` that is left.
        """


Sources = Callable[[int, int], Source]
"""The source of a (sequence, position)."""


class StreamSource:
    """Draws numbers from a `Stream`, each once, in the order they are asked for.

    ahead: the first uniforms of the purpose "token", where they were made already.
    """

    __slots__ = ("_ahead", "_choices", "_phantoms", "_stream", "_tokens")

    def __init__(self, stream: Stream, ahead: Float | None = None) -> None:
        self._stream = stream
        self._ahead = ahead
        self._choices = 0
        self._tokens = 0
        self._phantoms = 0

    def choose(self, weights: Float) -> int:
        """See `Source.choose`. One uniform each, by the inverse of the cumulative sum."""
        uniform = self._stream.uniforms("resample", 1, self._choices)[0]
        self._choices += 1
        cumulative = np.cumsum(weights)
        return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))

    def tokens(self, row: Row, count: int) -> npt.NDArray[np.int64]:
        """See `Source.tokens`. Draw j uses uniforms 2 j (block) and 2 j + 1 (token)."""
        begin, end = 2 * self._tokens, 2 * (self._tokens + count)
        self._tokens += count
        if self._ahead is not None and end <= self._ahead.size:
            uniforms = self._ahead[begin:end]
        else:
            uniforms = self._stream.uniforms("token", 2 * count, begin)
        return row.take(uniforms.reshape(count, 2))

    def phantoms(self, live: float, count: int) -> Sequence[float]:
        """See `Source.phantoms`. Counts are floats: they pass 2^63 at live masses below 1e-18."""
        if live >= 1.0:
            return [0.0] * count
        uniforms = self._stream.open_uniforms("phantom", count, self._phantoms)
        self._phantoms += count
        counts: list[float] = np.floor(np.log(uniforms) / np.log1p(-live)).tolist()
        return counts


class StreamSources:
    """The `StreamSource` of each (sequence, position), for sequences that go on side by side.

    The first numbers of a position are made for all of them at once, at little more than the cost
    of one. They are the numbers that each sequence has by itself.
    """

    __slots__ = ("_ahead", "_index", "_position", "_seed")

    def __init__(self, seed: int, sequences: Sequence[int]) -> None:
        self._seed = seed
        self._index = {sequence: i for i, sequence in enumerate(dict.fromkeys(sequences))}
        self._position = -1
        self._ahead = np.empty((0, 0))

    def __call__(self, sequence: int, position: int) -> StreamSource:
        stream = Stream(self._seed, sequence, position)
        if position != self._position:
            words = philox_first_words(self._seed, position, [*self._index], PURPOSES["token"])
            self._ahead = half_open_uniforms(words)
            self._position = position
        row = self._index.get(sequence)
        return StreamSource(stream, None if row is None else self._ahead[row])


class TokenUniforms:
    """The first uniforms of a sequence's purpose "token", made for many positions at once."""

    __slots__ = ("_begin", "_made", "_seed", "_sequence")

    def __init__(self, seed: int, sequence: int) -> None:
        self._seed, self._sequence = seed, sequence
        self._begin = 0
        self._made: list[list[float]] = []

    def at(self, position: int) -> list[float]:
        """Those of one position: the uniforms 0 to 3 of its `Stream`."""
        index = position - self._begin
        if not 0 <= index < len(self._made):
            stream = Stream(self._seed, self._sequence, position)
            count = min(_POSITIONS, (1 << 32) - position)
            positions = np.arange(position, position + count, dtype=np.uint64)
            seeds = np.full(count, stream.seed, np.uint64)
            sequences = np.full(count, stream.sequence, np.uint64)
            words = philox_keyed_words(seeds, positions, sequences, PURPOSES["token"], 4)
            self._begin, index = position, 0
            self._made = half_open_uniforms(words).tolist()
        return self._made[index]
