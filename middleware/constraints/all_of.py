"""Several constraints at once."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask
from midstream.middleware.constraints.cache import compiled
from midstream.middleware.constraints.constraint import Constraint
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher, State, TokenIds
from midstream.middleware.vocabulary import Vocabulary

_States: TypeAlias = tuple[State, ...]


@dataclass(frozen=True, slots=True, init=False)
class AllOf:
    """The texts that every one of several constraints allows.

    constraints: at least one. Order does not matter for what is allowed; where some have a mask and
        some have none (a `Predicate`), those without are asked only about what the others allow.

    A token is allowed where each constraint allows it. That each can then go on does not mean that
    all can go on together: where the languages part, the sequence ends as `dead`.

    ConstraintError for an empty list, or an item that is no constraint (`as_constraint` makes
    them).
    """

    constraints: tuple[Constraint, ...]

    def __init__(self, constraints: Iterable[Constraint]) -> None:
        accepted = "a list of at least one constraint; `as_constraint` makes one of other types"
        if isinstance(constraints, (str, bytes)) or not isinstance(constraints, Iterable):
            raise ConstraintError("constraints", constraints, accepted)
        given = tuple(constraints)
        if not given:
            raise ConstraintError("constraints", "an empty list", accepted)
        for index, constraint in enumerate(given):
            if isinstance(constraint, type) or not isinstance(constraint, Constraint):
                raise ConstraintError(f"constraints[{index}]", constraint, "a constraint")
        object.__setattr__(self, "constraints", given)

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """The matcher, kept by `cache`. ConstraintError where one does not compile."""
        return compiled(
            self,
            vocabulary,
            lambda: AllOfMatcher([one.compile(vocabulary) for one in self.constraints]),
        )


class AllOfMatcher:
    """A `Matcher` that allows what several of one vocabulary do. A state is a tuple of theirs."""

    def __init__(self, matchers: Iterable[Matcher]) -> None:
        """At least one matcher. Those with a mask, which are cheaper to ask, come first."""
        self._matchers = sorted(matchers, key=lambda one: (not one.has_mask, one.mask_cost))

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary the constraints were compiled for."""
        return self._matchers[0].vocabulary

    @property
    def has_mask(self) -> bool:
        """Whether all have one."""
        return all(one.has_mask for one in self._matchers)

    @property
    def mask_cost(self) -> float:
        """See `Matcher.mask_cost`: the sum."""
        return sum(one.mask_cost for one in self._matchers)

    def start(self) -> _States:
        """The state before the first token."""
        return tuple(one.start() for one in self._matchers)

    def allows(self, state: _States, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        """Whether each token may come next: bool [len(token_ids)].

        Each matcher is asked about what those before it allow.
        """
        ids = np.asarray(token_ids, np.int64)
        allowed = np.ones(ids.size, np.bool_)
        for one, inner in zip(self._matchers, state, strict=True):
            left = np.flatnonzero(allowed)
            if not left.size:
                break
            allowed[left] = one.allows(inner, ids[left])
        return allowed

    def advance(self, state: _States, token_id: int) -> _States | None:
        """The state after one more token, or None where one of the matchers does not allow it."""
        token = operator.index(token_id)
        after = []
        for one, inner in zip(self._matchers, state, strict=True):
            following = one.advance(inner, token)
            if following is None:
                return None
            after.append(following)
        return tuple(after)

    def mask(self, state: _States, out: Mask) -> None:
        """Write the allowed tokens into `out` [W]."""
        words = np.empty_like(out)
        for index, (one, inner) in enumerate(zip(self._matchers, state, strict=True)):
            one.mask(inner, words if index else out)
            if index:
                out &= words

    def superset(self, state: _States, out: Mask) -> bool:
        """What the supersets of all that have one, or a mask, share; False where none has."""
        words = np.empty_like(out)
        found = False
        for one, inner in zip(self._matchers, state, strict=True):
            target = words if found else out
            if not one.superset(inner, target):
                if not one.has_mask:
                    continue
                one.mask(inner, target)
            if found:
                out &= words
            found = True
        return found

    def accepts(self, state: _States) -> bool:
        """Whether the text so far is complete for all: whether end of sequence is allowed."""
        return all(one.accepts(inner) for one, inner in zip(self._matchers, state, strict=True))

    def tokens_to_finish(self, state: _States) -> int | None:
        """The matcher's own where there is one alone, else None: texts of all may be longer."""
        return self._matchers[0].tokens_to_finish(state[0]) if len(self._matchers) == 1 else None

    def reason(self, state: _States) -> str | None:
        """Why nothing is allowed in `state`, where one matcher alone allows nothing and tells."""
        for one, inner in zip(self._matchers, state, strict=True):
            told = getattr(one, "reason", None)
            reason: str | None = told(inner) if told is not None else None
            if reason is not None:
                return reason
        return None
