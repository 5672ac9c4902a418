"""What a strategy needs of a compiled constraint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from midstream.middleware.vocabulary import Vocabulary

State: TypeAlias = Any
"""Where one sequence stands in a matcher: an opaque value.
Keeping one costs nothing, advancing returns a new one.
"""

TokenIds: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]


class Matcher(Protocol):
    """A constraint compiled for one vocabulary: immutable, shared between sequences and threads.

    The language is over bytes: a token is allowed when the bytes so far plus its own are a prefix
    of the language. `mask` and `allows` agree bit for bit in every state.
    """

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary the constraint was compiled for."""

    @property
    def has_mask(self) -> bool:
        """Whether `mask` gives all allowed tokens at once."""

    @property
    def mask_cost(self) -> float:
        """Rough cost of one `mask` in single checks: a constant of the matcher, never measured."""

    def start(self) -> State:
        """The state before the first token."""

    def allows(self, state: State, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        """Whether each token may come next: bool [len(token_ids)].
        Ids beyond the vocabulary are False.
        """

    def advance(self, state: State, token_id: int) -> State | None:
        """The state after one more token, or None where it is not allowed. `state` is not changed.

        An end-of-sequence id that is allowed leads to a terminal state that allows nothing.
        """

    def mask(self, state: State, out: npt.NDArray[np.uint32]) -> None:
        """Write the allowed tokens into `out` [W]: bit t & 31 of word t >> 5, 1 = allowed;
        words beyond are 0.
        """

    def superset(self, state: State, out: npt.NDArray[np.uint32]) -> bool:
        """Write a cheap mask that holds every allowed token and maybe more;
        False where there is none.
        """

    def accepts(self, state: State) -> bool:
        """Whether the text so far is complete, which is whether end of sequence is allowed."""

    def tokens_to_finish(self, state: State) -> int | None:
        """Least number of tokens, end of sequence not counted, to a complete text;
        None where not known.
        """


def fault(error: Exception) -> str:
    """What a constraint that raised is told as: one request's constraint must not stop the loop."""
    return f"the constraint failed: {type(error).__name__}: {error}"


def next_state(matcher: Matcher, state: State, token_id: int) -> tuple[State | None, str]:
    """The state after a token that was drawn, or None and why there is none: a fault is a value."""
    try:
        following = matcher.advance(state, token_id)
    except Exception as error:
        return None, fault(error)
    if following is None:
        return None, "the matcher refused a token that it had allowed"
    return following, ""


def why_nothing(matcher: Matcher, state: State) -> str:
    """Why a state allows nothing: what the matcher's `reason(state)` says; empty without one."""
    told = getattr(matcher, "reason", None)
    try:
        return (told(state) or "") if told is not None else ""
    except Exception as error:
        return fault(error)
