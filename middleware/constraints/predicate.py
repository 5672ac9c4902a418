"""A user's own test of prefixes: the black box that only rejection sampling serves."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, pack_mask
from midstream.middleware.constraints.cache import compiled
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher, TokenIds
from midstream.middleware.vocabulary import Vocabulary

VERDICTS_REMEMBERED = 4096
"""For each state: what the predicate said of the tokens asked about."""


class PredicateError(RuntimeError):
    """A user's predicate raised: its error is the cause.

    Whether the token is allowed is then not known, and taking it for refused would change the law
    in silence. So no answer is given. The samplers make of it a draw whose status is `dead`, with
    this message as the reason.
    """


@dataclass(frozen=True, slots=True, eq=False)
class Predicate:
    """Texts that a user's functions accept.

    prefix: whether these bytes are the beginning of a text that is wanted. It must be monotone, as
        prefixes are: true of every beginning of what it is true of. Bytes may end within a
        character: decode them with care (`errors="ignore"`), since a strict `decode` raises.
    complete: whether these bytes are such a text in full, so that end of sequence is allowed.

    Both must depend on the bytes alone: verdicts are remembered for each state, and a state may be
    shared by sequences and threads. They are called once for each distinct text that is asked
    about. Special tokens are never allowed.
    There is no mask: samplers check token by token. What a function raises comes out as a
    PredicateError.

    Two predicates are equal when their functions are the same objects. ConstraintError for what
    cannot be called.
    """

    prefix: Callable[[bytes], bool]
    complete: Callable[[bytes], bool]

    def __post_init__(self) -> None:
        for name in ("prefix", "complete"):
            if not callable(getattr(self, name)):
                accepted = "a function from bytes to bool"
                raise ConstraintError(name, getattr(self, name), accepted)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Predicate):
            return NotImplemented
        return self.prefix is other.prefix and self.complete is other.complete

    def __hash__(self) -> int:
        return hash((id(self.prefix), id(self.complete)))

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """The matcher for one vocabulary, kept by `cache`."""
        return compiled(self, vocabulary, lambda: PredicateMatcher(self, vocabulary))


class _Text:
    """A state: the bytes so far, and what is known of the texts that go on from here."""

    __slots__ = ("complete", "text", "verdicts")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.verdicts: dict[bytes, bool] = {}
        self.complete: bool | None = None


_ENDED = _Text(b"")
_ENDED.complete = False


class PredicateMatcher:
    """A `Matcher` that asks a `Predicate`. A state is the text so far."""

    has_mask = False

    def __init__(self, predicate: Predicate, vocabulary: Vocabulary) -> None:
        self._predicate = predicate
        self._vocabulary = vocabulary
        self._eos = frozenset(vocabulary.eos_ids)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary the constraint was compiled for."""
        return self._vocabulary

    @property
    def mask_cost(self) -> float:
        """See `Matcher.mask_cost`: a check of every token."""
        return float(len(self._vocabulary))

    def start(self) -> _Text:
        """The state before the first token."""
        return _Text(b"")

    def allows(self, state: _Text, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        """Whether each token may come next: bool [len(token_ids)]. May raise PredicateError."""
        ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else token_ids
        return np.array([self._allows(state, token) for token in ids], np.bool_)

    def advance(self, state: _Text, token_id: int) -> _Text | None:
        """The state after one more token, or None where it is not allowed."""
        token = operator.index(token_id)
        if not self._allows(state, token):
            return None
        if token in self._eos:
            return _ENDED
        return _Text(state.text + self._vocabulary.token_bytes[token])

    def mask(self, state: _Text, out: Mask) -> None:
        """Write the allowed tokens into `out` [W], after a check of every token."""
        allowed = self.allows(state, range(len(self._vocabulary)))
        pack_mask(allowed[: 32 * out.size], out)

    def superset(self, state: _Text, out: Mask) -> bool:
        """False: there is none."""
        return False

    def accepts(self, state: _Text) -> bool:
        """Whether the text so far is complete, which is whether end of sequence is allowed."""
        if state.complete is None:
            state.complete = _ask(self._predicate.complete, "complete", state.text)
        return state.complete

    def tokens_to_finish(self, state: _Text) -> int | None:
        """None: not known."""
        return None

    def _allows(self, state: _Text, token: int) -> bool:
        if token in self._eos:
            return self.accepts(state)
        if state is _ENDED or not 0 <= token < len(self._vocabulary):
            return False
        spelling = self._vocabulary.token_bytes[token]
        if not spelling:
            return False
        verdict = state.verdicts.get(spelling)
        if verdict is None:
            verdict = _ask(self._predicate.prefix, "prefix", state.text + spelling)
            if len(state.verdicts) < VERDICTS_REMEMBERED:
                state.verdicts[spelling] = verdict
        return verdict


def _ask(function: Callable[[bytes], bool], name: str, text: bytes) -> bool:
    try:
        return bool(function(text))
    except Exception as error:
        shown = text if len(text) <= 60 else b"..." + text[-57:]
        raise PredicateError(f"{name}({shown!r}) raised {type(error).__name__}: {error}") from error
