"""The matcher of a byte automaton: what `Regex` and `Choice` compile to."""

from __future__ import annotations

import operator
import threading
from collections.abc import Hashable
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, pack_mask
from midstream.middleware.constraints.automaton import DEAD, NEVER, START, Automaton
from midstream.middleware.constraints.token_distances import byte_bound, token_distances
from midstream.middleware.constraints.token_trie import TokenTrie, token_trie
from midstream.middleware.matcher import TokenIds
from midstream.middleware.vocabulary import Vocabulary

CACHE_BYTES = 16 << 20
"""Of masks, for each matcher."""

_FINISHED = DEAD
"""After end of sequence nothing is allowed: the dead state of the automaton says just that."""


class AutomatonMatcher:
    """A `Matcher` whose states are the integers of a byte automaton.

    A mask is found by one walk of the tokens' trie and kept (the last CACHE_BYTES of them); single
    checks walk the bytes of their token. Any number of threads may share it. It has what
    `within_budget` needs to be cheap: `finish_bound` and `mask_within`.
    """

    has_mask = True

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary) -> None:
        self._automaton = automaton
        self._vocabulary = vocabulary
        self._flat = automaton.table.ravel().data
        self._width = automaton.table.shape[1]
        self._classes = automaton.classes.tolist()
        self._accepting = automaton.accepting.tolist()
        self._spellings = vocabulary.token_bytes
        self._eos = frozenset(vocabulary.eos_ids)
        kept = CACHE_BYTES // (4 * vocabulary.mask_words + 200)
        self._masks: _Recent[tuple[int, int], Mask] = _Recent(kept)
        self._supersets: _Recent[bytes, Mask] = _Recent(max(1, kept // 4))

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary the constraint was compiled for."""
        return self._vocabulary

    @property
    def mask_cost(self) -> float:
        """See `Matcher.mask_cost`: a walk and a pass over the vocabulary, unless it is kept."""
        return 64 + len(self._vocabulary) / 64

    def start(self) -> int:
        """The state before the first token."""
        return START

    def allows(self, state: int, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        """Whether each token may come next: bool [len(token_ids)]; False beyond the vocabulary."""
        ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else token_ids
        words = self._masks.get((state, NEVER))
        if words is None and len(ids) > self.mask_cost:
            words = self._mask(state, NEVER)
        if words is None:
            return np.array([self._after(state, token) is not None for token in ids], np.bool_)
        bits, size = words.data.cast("B"), len(self._vocabulary)
        return np.array(
            [0 <= token < size and bits[token >> 3] >> (token & 7) & 1 for token in ids], np.bool_
        )

    def advance(self, state: int, token_id: int) -> int | None:
        """The state after one more token, or None where it is not allowed."""
        return self._after(state, operator.index(token_id))

    def mask(self, state: int, out: Mask) -> None:
        """Write the allowed tokens into `out` [W]."""
        _write(self._mask(state, NEVER), out)

    def mask_within(self, state: int, tokens: int, out: Mask) -> None:
        """As `mask`, without the tokens after which finishing takes more than `tokens` others.

        End of sequence is in it where the text is complete. `tokens_to_finish` must be known.
        """
        _write(self._mask(state, NEVER if tokens >= self.finish_bound else tokens), out)

    def superset(self, state: int, out: Mask) -> bool:
        """The tokens whose first byte may come next. Always True."""
        columns = self._automaton.table[state] != DEAD
        key = columns.tobytes() + bytes([self._accepting[state]])
        words = self._supersets.get(key)
        if words is None:
            words = self._packed(np.flatnonzero(columns[self._first_columns]), state)
            self._supersets.put(key, words)
        _write(words, out)
        return True

    def accepts(self, state: int) -> bool:
        """Whether the text so far is complete, which is whether end of sequence is allowed."""
        return bool(self._accepting[state])

    def tokens_to_finish(self, state: int) -> int | None:
        """Least number of tokens to a complete text, exact; 0 after end of sequence.

        NEVER (2**31 - 1) where no tokens of this vocabulary complete the text. None in every state
        of an automaton that is too large to find it for (`token_distances`). The first call may
        take seconds.
        """
        if state == _FINISHED:
            return 0
        return None if self._finish is None else int(self._finish[state])

    @cached_property  # a race of threads would compute the same twice
    def finish_bound(self) -> int:
        """An upper bound on `tokens_to_finish` over all states; NEVER where there is none.

        It is cheap, and counts single bytes, where these are tokens.
        """
        bound = int(self._byte_bound[START:].max())
        if bound == NEVER and self._finish is not None:
            return int(self._finish[START:].max())
        return bound

    @cached_property
    def _trie(self) -> TokenTrie:
        return token_trie(self._vocabulary, self._automaton)

    @cached_property
    def _finish(self) -> npt.NDArray[np.int32] | None:
        return token_distances(self._automaton, self._trie, self._byte_bound)

    @cached_property
    def _byte_bound(self) -> npt.NDArray[np.int32]:
        return byte_bound(self._automaton, self._trie)

    @cached_property
    def _first_columns(self) -> npt.NDArray[np.int16]:
        """The class of the first byte of each token, DEAD for special tokens, [V]."""
        first = np.array([text[0] if text else 0 for text in self._vocabulary.token_bytes])
        special = np.array([not text for text in self._vocabulary.token_bytes])
        return np.where(special, np.int16(DEAD), self._automaton.classes[first])

    def _after(self, state: int, token: int) -> int | None:
        if not 0 <= token < len(self._spellings):
            return None
        spelling = self._spellings[token]
        if not spelling:
            return _FINISHED if token in self._eos and self._accepting[state] else None
        flat, width, classes = self._flat, self._width, self._classes
        for byte in spelling:
            state = flat[state * width + classes[byte]]
            if state == DEAD:
                return None
        return state

    def _mask(self, state: int, limit: int) -> Mask:
        words = self._masks.get((state, limit))
        if words is None:
            nodes, after = self._trie.arrivals_from(self._automaton.table, state)
            if limit < NEVER:
                assert self._finish is not None
                nodes = nodes[self._finish[after] <= limit]
            words = self._packed(self._trie.tokens_of(nodes), state)
            self._masks.put((state, limit), words)
        return words

    def _packed(self, tokens: npt.NDArray[np.int64], state: int) -> Mask:
        allowed = np.zeros(len(self._vocabulary), np.bool_)
        allowed[tokens] = True
        if self._accepting[state]:
            allowed[list(self._eos)] = True
        words = pack_mask(allowed)
        words.flags.writeable = False
        return words


def _write(words: Mask, out: Mask) -> None:
    out[: words.size] = words
    out[words.size :] = 0


_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class _Recent(Generic[_K, _V]):
    """The last `size` things that were put in. Reading takes no lock."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[_K, _V] = {}
        self._lock = threading.Lock()
        self.get = self._kept.get

    def put(self, key: _K, value: _V) -> None:
        with self._lock:
            while len(self._kept) >= self._size:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = value
