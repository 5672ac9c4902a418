"""The matcher of JSON Schemas, grammars, and patterns too large for an automaton: llguidance."""

from __future__ import annotations

import operator
from collections import deque

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask
from midstream.middleware.constraints.ll_compile import compile_grammar
from midstream.middleware.constraints.ll_engine import NOTHING_CONTINUES, Engine, Node
from midstream.middleware.constraints.ll_pool import EngineError, EnginePool
from midstream.middleware.constraints.ll_tokenizer import engine_tokens
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import TokenIds
from midstream.middleware.vocabulary import Vocabulary

MASK_BYTES = 4 << 20
"""Of masks that a matcher remembers."""

CHECKS_BEFORE_MASK = 32
"""More checks than that at once are read from the mask."""


class LazyMatcher:
    """A `Matcher` whose states are nodes of a tree, between which llguidance's engines are moved.

    Keeping a state keeps a small object for each token before it. Where the text has diverged for
    long, each branch gets an engine of its own (`EnginePool`). `mask` equals `allows` in every
    state: both are the language of bytes, whatever the tokenization. A limit of llguidance that is
    met on the way leaves a state that allows nothing; `reason` tells it. Any number of threads may
    share a matcher.
    """

    has_mask = True
    least_tokens: int
    """No text of the language takes fewer tokens, end of sequence not counted. Not exact."""

    def __init__(
        self, pool: EnginePool, start: Node, vocabulary: Vocabulary, least_bytes: int
    ) -> None:
        """`pool` must give engines for `start`. Callers use the functions `compile_...` below."""
        self._pool = pool
        self._start = start
        self._ended = Node(None, -1, "the text has ended")
        self._vocabulary = vocabulary
        tokens = engine_tokens(vocabulary)
        self._engine_ids = tokens.engine_ids
        self._twins, self._firsts = tokens.twins, tokens.firsts
        self._eos = frozenset(vocabulary.eos_ids)
        longest = max(map(len, vocabulary.token_bytes))
        self.least_tokens = -(-least_bytes // max(1, longest))
        self._remembered: deque[Node] = deque()
        self._remember = max(16, MASK_BYTES // (4 * vocabulary.mask_words))

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary the constraint was compiled for."""
        return self._vocabulary

    @property
    def mask_cost(self) -> float:
        """See `Matcher.mask_cost`: measured, 10 to 200 us against 1 us for a check."""
        return 8 + len(self._vocabulary) / 2048

    def start(self) -> Node:
        """The state before the first token."""
        return self._start

    def allows(self, state: Node, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        """Whether each token may come next: bool [len(token_ids)]. Unknown ids are False."""
        ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else token_ids
        words = state.mask
        if words is None and (len(ids) > CHECKS_BEFORE_MASK or not state.depth):
            words = self._mask(state)
        if words is None:
            return np.array(self._checked(state, ids), np.bool_)
        bits, size = words.data.cast("B"), len(self._vocabulary)
        return np.array(
            [0 <= token < size and bits[token >> 3] >> (token & 7) & 1 for token in ids], np.bool_
        )

    def advance(self, state: Node, token_id: int) -> Node | None:
        """The state after one more token, or None where it is not allowed."""
        token = operator.index(token_id)
        if token in self._eos:
            return self._ended if self.accepts(state) else None
        if not 0 <= token < len(self._engine_ids) or state.reason is not None:
            return None
        known = self._engine_ids[token]
        if known < 0:
            return None
        words = state.mask
        if words is None and not state.depth:
            words = self._mask(state)
        if words is None:
            return self._advanced(state, known)
        allowed = int(words[token >> 5]) >> (token & 31) & 1
        return Node(state, known) if allowed else None

    def mask(self, state: Node, out: Mask) -> None:
        """Write the allowed tokens into `out` [W]; words beyond the vocabulary are 0."""
        words = self._mask(state)
        kept = min(words.size, out.size)
        out[:kept] = words[:kept]
        out[kept:] = 0

    def superset(self, state: Node, out: Mask) -> bool:
        """The mask itself. Always True."""
        self.mask(state, out)
        return True

    def accepts(self, state: Node) -> bool:
        """Whether the text so far is complete, which is whether end of sequence is allowed."""
        if state.accepting is None:
            if not state.depth:
                self._mask(state)
                return bool(state.accepting)
            try:
                state.accepting = self._pool.run(state, _accepting)
            except EngineError as failed:
                _end(state, failed.reason)
        return bool(state.accepting)

    def tokens_to_finish(self, state: Node) -> int | None:
        """None: not known."""
        return None

    def reason(self, state: Node) -> str | None:
        """Why nothing is allowed in `state`; None where something is."""
        if state.reason is None:
            self._mask(state)
        return state.reason

    def _checked(self, state: Node, ids: TokenIds) -> list[bool]:
        """Checks one by one, without a mask."""
        if state.reason is not None:
            return [False] * len(ids)
        known = self._engine_ids
        asked = [known[token] if 0 <= token < len(known) else -1 for token in ids]

        def check(engine: Engine) -> list[bool]:
            validate = engine.matcher.validate_tokens
            found = [token >= 0 and validate([token]) == 1 for token in asked]
            if not found[-1]:
                engine.healthy()  # if it is not, it is in error now, and this does not count
            return found

        try:
            found = self._pool.run(state, check) if ids else []
        except EngineError as failed:
            _end(state, failed.reason)
            return [False] * len(ids)
        if not self._eos.isdisjoint(ids):
            complete = self.accepts(state)
            found = [
                complete if token in self._eos else one
                for token, one in zip(ids, found, strict=True)
            ]
        return found

    def _advanced(self, state: Node, known: int) -> Node | None:
        """`advance` without a mask; a child that meets a limit is a state that allows nothing."""

        def step(engine: Engine) -> Node | None:
            if engine.matcher.try_consume_tokens([known]) == 1:
                child = Node(state, known)
                engine.arrive(child)
                return child
            engine.healthy()
            return None

        try:
            return self._pool.run(state, step)
        except EngineError as failed:
            if failed.reached:
                return Node(state, known, failed.reason)
            _end(state, failed.reason)
            return None

    def _mask(self, state: Node) -> Mask:
        words = state.mask
        if words is not None:
            return words
        words = np.zeros(self._vocabulary.mask_words, np.uint32)
        if state.reason is None:
            try:
                state.accepting = self._pool.run(state, lambda engine: _read(engine, words))
            except EngineError as failed:
                words[:] = 0
                _end(state, failed.reason)
            else:
                self._complete(state, words)
        words.flags.writeable = False
        state.mask = words
        self._remembered.append(state)
        if len(self._remembered) > self._remember:
            self._remembered.popleft().mask = None
        return words

    def _complete(self, state: Node, words: Mask) -> None:
        """Add what llguidance does not know: tokens with the bytes of others, end of sequence."""
        if self._twins.size:
            bits = words[self._firsts >> 5] >> (self._firsts & 31).astype(np.uint32) & 1
            np.bitwise_or.at(words, self._twins >> 5, bits << (self._twins & 31).astype(np.uint32))
        if state.accepting:
            for token in self._eos:
                words[token >> 5] |= np.uint32(1 << (token & 31))
        if not np.count_nonzero(words):
            state.reason = NOTHING_CONTINUES


def _read(engine: Engine, words: Mask) -> bool:
    """Copy llguidance's mask into `words`; whether the text is complete."""
    allowed = engine.allowed()
    if allowed is not None:
        words[:] = allowed[: words.size]
    return _accepting(engine)


def _accepting(engine: Engine) -> bool:
    """Whether the text is complete; a refusal is made sure of."""
    accepting = engine.matcher.is_accepting()
    if not accepting:
        engine.healthy()
    return accepting


def _end(state: Node, reason: str) -> None:
    state.accepting = False
    state.reason = reason


def compile_lazy(
    lark: str,
    vocabulary: Vocabulary,
    *,
    argument: str,
    got: object,
    accepted: str,
    wild: bool = False,
    least_bytes: int = 0,
) -> LazyMatcher:
    """The matcher of a grammar in llguidance's Lark syntax. See `compile_grammar`.

    least_bytes: that no text of the language is shorter than.

    ConstraintError where it does not compile, and where the vocabulary cannot begin any text of it.
    """
    first, again = compile_grammar(
        lark, vocabulary, argument=argument, got=got, accepted=accepted, wild=wild
    )
    start = Node(None, -1)
    pool = EnginePool(first, again, start, len(vocabulary))
    matcher = LazyMatcher(pool, start, vocabulary, least_bytes)
    reason = matcher.reason(start)
    if reason is not None:
        if reason == NOTHING_CONTINUES:
            reason = "it has no text, or none that the vocabulary can begin to spell"
        raise ConstraintError(argument, got, f"{accepted} ({reason})")
    return matcher


def compile_lazy_regex(pattern: str, vocabulary: Vocabulary) -> LazyMatcher:
    """The matcher of a regular expression in the syntax of Rust's `regex`, matched in full.

    For patterns whose automaton is too large: states are found as they are needed.
    """
    from llguidance import regex_to_lark

    body = f"/{regex_to_lark(pattern, use_ascii='')}/" if pattern else '""'
    accepted = "a regular expression that llguidance can compile"
    return compile_lazy(
        f"start: {body}\n", vocabulary, argument="pattern", got=pattern, accepted=accepted
    )
