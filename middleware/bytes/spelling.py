"""Matchers that force bytes: first a prompt's tail in any tokens, then whatever is wanted after it.

What is drawn under one is the locally masked law. The weight of a draw, the product of the masses
that the masks left, makes it proper for the model's law of token strings that spell the tail
(Vieira et al., "From Language Models over Tokens to Language Models over Characters", arXiv
2412.03719, define those; that the product is the weight follows from sequential importance
sampling).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, mask_of_tokens
from midstream.middleware.bytes.beyond import Beyond
from midstream.middleware.bytes.tail import byte_sorted
from midstream.middleware.errors import VocabularyError
from midstream.middleware.matcher import Matcher, State, TokenIds, why_nothing
from midstream.middleware.vocabulary import Vocabulary

NEVER = 1 << 30
"""More tokens than any budget holds: for bytes that no tokens spell."""


class SpellsFirst:
    """A matcher of token strings that spell `tail`, and beyond it what `then` allows.

    The last token of the tail may reach beyond it; its bytes there must be a beginning of what
    `then` wants, see `Beyond`. Tokens after which nothing spells the rest of the tail are not
    allowed.

    A state is (bytes of the tail that are spelled, state of `then` or None). `tokens_to_finish` is
    an upper bound while the tail is not spelled: of the ways that end where it ends.
    Raises VocabularyError where no tokens spell the tail.
    """

    def __init__(self, tail: bytes, then: Matcher) -> None:
        self.tail = tail
        self.then = then
        self.beyond = Beyond(then)
        self._needed = _least_tokens(tail, then.vocabulary)
        self._ways_at: dict[int, npt.NDArray[np.int64]] = {}
        self._allowed_at: dict[int, npt.NDArray[np.int64]] = {}
        if not self._ways(0).size:
            accepted = "a tokenizer whose tokens spell what was cut from the prompt"
            raise VocabularyError("tokenizer", f"none that spells {tail!r}", accepted)

    @property
    def vocabulary(self) -> Vocabulary:
        """See `Matcher.vocabulary`."""
        return self.then.vocabulary

    @property
    def has_mask(self) -> bool:
        """See `Matcher.has_mask`."""
        return self.then.has_mask

    @property
    def mask_cost(self) -> float:
        """See `Matcher.mask_cost`."""
        return self.then.mask_cost

    def start(self) -> State:
        """See `Matcher.start`."""
        return self._at(0)

    def allows(self, state: State, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        """See `Matcher.allows`."""
        at, inner = state
        if at == len(self.tail):
            return self.then.allows(inner, token_ids)
        return np.array([self.advance(state, int(t)) is not None for t in token_ids], np.bool_)

    def advance(self, state: State, token_id: int) -> State | None:
        """See `Matcher.advance`."""
        at, inner = state
        if at == len(self.tail):
            following = self.then.advance(inner, token_id)
            return None if following is None else (at, following)
        if not 0 <= token_id < len(self.vocabulary):
            return None
        spelling = self.vocabulary.token_bytes[token_id]
        left = self.tail[at:]
        if spelling and left.startswith(spelling):
            at += len(spelling)
            return self._at(at) if at == len(self.tail) or self._ways(at).size else None
        if not spelling.startswith(left):
            return None
        following = self.beyond.state_after(spelling[len(left) :])
        return None if following is None else (len(self.tail), following)

    def mask(self, state: State, out: Mask) -> None:
        """See `Matcher.mask`."""
        at, inner = state
        if at == len(self.tail):
            self.then.mask(inner, out)
        else:
            mask_of_tokens(self._allowed(at), out)

    def superset(self, state: State, out: Mask) -> bool:
        """See `Matcher.superset`. All tokens that the bytes of the tail allow."""
        at, inner = state
        if at == len(self.tail):
            return self.then.superset(inner, out)
        mask_of_tokens(self._ways(at), out)
        return True

    def accepts(self, state: State) -> bool:
        """See `Matcher.accepts`."""
        at, inner = state
        return at == len(self.tail) and self.then.accepts(inner)

    def tokens_to_finish(self, state: State) -> int | None:
        """See `Matcher.tokens_to_finish`, and the class."""
        at, inner = state
        if at == len(self.tail):
            return self.then.tokens_to_finish(inner)
        least = self.then.tokens_to_finish(self.then.start())
        return None if least is None or self._needed[at] >= NEVER else self._needed[at] + least

    def reason(self, state: State) -> str:
        """Why a state allows nothing."""
        at, inner = state
        if at == len(self.tail):
            return why_nothing(self.then, inner)
        return f"no token that may follow spells {self.tail[at:]!r}, the end of the prompt"

    def _at(self, at: int) -> State:
        return (at, self.then.start() if at == len(self.tail) else None)

    def _ways(self, at: int) -> npt.NDArray[np.int64]:
        """The ids that agree with the bytes of the tail, and after which it can be spelled."""
        if at not in self._ways_at:
            self._ways_at[at] = self._find_ways(at)
        return self._ways_at[at]

    def _find_ways(self, at: int) -> npt.NDArray[np.int64]:
        trie, left = byte_sorted(self.vocabulary), self.tail[at:]
        found, node = [], 0
        for spelled, byte in enumerate(left, 1):
            node = trie.child(node, byte)
            if node < 0:
                break
            if spelled == len(left):
                found.append(trie.order[trie.low[node] : trie.high[node]])
            elif trie.ends[node] > trie.low[node] and self._ways(at + spelled).size:
                found.append(trie.order[trie.low[node] : trie.ends[node]])
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _allowed(self, at: int) -> npt.NDArray[np.int64]:
        """`_ways` whose bytes beyond the tail `then` allows; found once for each place."""
        if at not in self._allowed_at:
            ways = self._ways(at)
            self._allowed_at[at] = ways[self.beyond.allows(ways, len(self.tail) - at)]
        return self._allowed_at[at]


class FinishingSpellsFirst(SpellsFirst):
    """`SpellsFirst` of a matcher that makes `within_budget` cheap: see `Finishing`."""

    @property
    def finish_bound(self) -> int:
        """See `Finishing.finish_bound`."""
        reachable = [needed for needed in self._needed if needed < NEVER]
        bound: int = self.then.finish_bound  # type: ignore[attr-defined]  # `spells_first` looked
        return bound + max(reachable, default=0)

    def mask_within(self, state: State, tokens: int, out: Mask) -> None:
        """See `Finishing.mask_within`."""
        at, inner = state
        if at == len(self.tail):
            self.then.mask_within(inner, tokens, out)  # type: ignore[attr-defined]  # as above
            return
        kept = []
        for token in self._allowed(at).tolist():
            child = self.advance(state, token)
            needed = None if child is None else self.tokens_to_finish(child)
            if needed is not None and needed <= tokens:
                kept.append(token)
        mask_of_tokens(np.array(kept, np.int64), out)


def spells_first(tail: bytes, then: Matcher) -> Matcher:
    """`then` after a tail that is to be spelled first; `then` itself for an empty tail."""
    if not tail:
        return then
    finishing = hasattr(then, "finish_bound") and hasattr(then, "mask_within")
    return FinishingSpellsFirst(tail, then) if finishing else SpellsFirst(tail, then)


def _least_tokens(tail: bytes, vocabulary: Vocabulary) -> list[int]:
    """Of each place of the tail: the least tokens that spell the rest of it and no more."""
    trie = byte_sorted(vocabulary)
    needed = [NEVER] * len(tail) + [0]
    for at in range(len(tail) - 1, -1, -1):
        node = 0
        for end in range(at, len(tail)):
            node = trie.child(node, tail[end])
            if node < 0:
                break
            if trie.ends[node] > trie.low[node]:
                needed[at] = min(needed[at], 1 + needed[end + 1])
    return needed
