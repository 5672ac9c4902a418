"""What every constraint is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, runtime_checkable

from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary


@runtime_checkable
class Constraint(Hashable, Protocol):
    """What is wanted of a text, without a tokenizer: immutable, equal where it says the same."""

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """The matcher for one vocabulary. ConstraintError where there is none."""
