"""A matcher that never starts what it cannot finish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, pack_mask, unpack_mask
from midstream.middleware.errors import ConstraintError, StrategyError
from midstream.middleware.matcher import Matcher, State, TokenIds, why_nothing
from midstream.middleware.vocabulary import Vocabulary

BudgetState: TypeAlias = tuple[State, int]
"""The inner matcher's state, and how many tokens may still come, end of sequence among them."""


@runtime_checkable
class Finishing(Protocol):
    """What a matcher may have besides, for `within_budget` to be cheap."""

    @property
    def finish_bound(self) -> int:
        """An upper bound on `tokens_to_finish` over all states."""

    def mask_within(self, state: State, tokens: int, out: Mask) -> None:
        """As `mask`, without the tokens after which `tokens_to_finish` exceeds `tokens`.

        `tokens` may be negative: then end of sequence alone is left, where the text is complete.
        """


def within_budget(matcher: Matcher, max_new_tokens: int) -> Matcher:
    """A matcher of the same texts that only takes paths which end within the budget.

    max_new_tokens: at least 1. End of sequence counts: a sequence of max_new_tokens tokens holds
    its own end.

    A token is allowed only where the text can then still be completed, and ended, by the tokens
    that remain. So every path of allowed tokens ends in time, whatever the model prefers, and the
    language within the budget loses nothing. Where `tokens_to_finish` is None at the start the
    matcher itself is returned: its sequences may end as `length`. (If it has an attribute
    `least_tokens`, a bound from below on the tokens of a text, a budget below that raises.)

    Cost: none but a comparison while more tokens remain than the inner matcher's `finish_bound` +
    2; below, a mask is the inner matcher's `mask_within`, and a single check adds one `advance` and
    one `tokens_to_finish`. A matcher without `Finishing` is checked token by token, over all that
    it allows.

    Raises ConstraintError where no text of the language fits, naming the least number of tokens
    that one needs.
    """
    if (
        isinstance(max_new_tokens, bool)
        or not isinstance(max_new_tokens, int)
        or max_new_tokens < 1
    ):
        raise StrategyError("max_new_tokens", max_new_tokens, "an integer, at least 1")
    least = matcher.tokens_to_finish(matcher.start())
    if least is None:
        _refuse_below(getattr(matcher, "least_tokens", 0), max_new_tokens)
        return matcher
    if not matcher.vocabulary.eos_ids:
        accepted = "a vocabulary with an end-of-sequence id, without which no text ends"
        raise ConstraintError("max_new_tokens", max_new_tokens, accepted)
    _refuse_below(least, max_new_tokens)
    finishing = matcher if isinstance(matcher, Finishing) else None
    return _BudgetMatcher(matcher, finishing, max_new_tokens)


def _refuse_below(least: int, max_new_tokens: int) -> None:
    if least + 1 > max_new_tokens:
        accepted = f"at least {least + 1}: no text takes fewer than {least} tokens, and its end one"
        raise ConstraintError("max_new_tokens", max_new_tokens, accepted)


@dataclass(frozen=True, slots=True)
class _BudgetMatcher:
    inner: Matcher
    finishing: Finishing | None
    max_new_tokens: int

    @property
    def vocabulary(self) -> Vocabulary:
        return self.inner.vocabulary

    @property
    def has_mask(self) -> bool:
        return self.inner.has_mask

    @property
    def mask_cost(self) -> float:
        return self.inner.mask_cost

    def start(self) -> BudgetState:
        return self.inner.start(), self.max_new_tokens

    def allows(self, state: BudgetState, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        inner, left = state
        allowed = self.inner.allows(inner, token_ids)
        if not self._ample(left):
            for index in np.flatnonzero(allowed):
                allowed[index] = self.advance(state, int(token_ids[index])) is not None
        return allowed

    def advance(self, state: BudgetState, token_id: int) -> BudgetState | None:
        inner, left = state
        child = self.inner.advance(inner, token_id)
        if child is None:
            return None
        if not self._ample(left) and token_id not in self.vocabulary.eos_ids:
            needed = self.inner.tokens_to_finish(child)
            if needed is None or needed > left - 2:
                return None
        return child, left - 1

    def mask(self, state: BudgetState, out: Mask) -> None:
        inner, left = state
        if self._ample(left):
            self.inner.mask(inner, out)
        elif self.finishing is not None:
            self.finishing.mask_within(inner, left - 2, out)
        else:
            self.inner.mask(inner, out)
            allowed = unpack_mask(out, len(self.vocabulary))
            tokens = np.flatnonzero(allowed)
            allowed[tokens] = self.allows(state, tokens)
            pack_mask(allowed, out)

    def superset(self, state: BudgetState, out: Mask) -> bool:
        inner, left = state
        if self.finishing is not None and not self._ample(left):
            self.finishing.mask_within(inner, left - 2, out)
            return True
        return self.inner.superset(inner, out)

    def accepts(self, state: BudgetState) -> bool:
        return self.inner.accepts(state[0])

    def tokens_to_finish(self, state: BudgetState) -> int | None:
        return self.inner.tokens_to_finish(state[0])

    def reason(self, state: BudgetState) -> str:
        return why_nothing(self.inner, state[0])

    def _ample(self, left: int) -> bool:
        """Whether there is room for any token, `finish_bound` others, and the end."""
        return self.finishing is not None and left - 2 >= self.finishing.finish_bound
