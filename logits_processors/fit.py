"""A constraint, a tokenizer and a model's rows that must fit each other."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from midstream.middleware.end_of_sequence import VocabularyWarning
from midstream.middleware.errors import InputError, VocabularyError
from midstream.middleware.law import PLAIN, Law
from midstream.middleware.matcher import Matcher
from midstream.middleware.sampling import Sampler
from midstream.middleware.vocabulary import Vocabulary

SPARE_IDS = 256
SPARE_SHARE = 0.05
"""A model's row is padded beyond its tokenizer by this much at the most: the widest known padding
is 2.4 % (DeepSeek-V2), and small models round up to a multiple of 64, 128 or 256."""


def check_row_size(vocabulary: Vocabulary, size: int) -> None:
    """VocabularyError where a row of `size` logits is not of this vocabulary."""
    spare = max(SPARE_IDS, int(SPARE_SHARE * size))
    if not len(vocabulary) <= size <= len(vocabulary) + spare:
        got = f"{len(vocabulary)} tokens, for a model with {size} logits"
        accepted = (
            f"the model's own tokenizer ({size} ids, or up to {spare} fewer), or "
            "Vocabulary.from_tokenizer(tokenizer, size=...) for a row that is padded further"
        )
        raise VocabularyError("tokenizer", got, accepted)


class CompiledConstraints:
    """One constraint, or one for each prompt, compiled for a tokenizer.

    constraint: whatever `as_constraint` takes, a compiled matcher, or a list of them.
    tokenizer: one, or a Vocabulary.
    Raises ConstraintError, VocabularyError, and what `sampler` raises for a matcher that it cannot
    serve.
    """

    def __init__(self, constraint: Any, tokenizer: Any, sampler: Sampler) -> None:
        self._constraints = _several(constraint)
        self._sampler = sampler
        given = isinstance(tokenizer, Vocabulary)
        self._fixed = given or any(map(_is_matcher, self._constraints))
        self._compile(tokenizer if given else Vocabulary.from_tokenizer(tokenizer))

    def _compile(self, vocabulary: Vocabulary) -> None:
        if not vocabulary.eos_ids:
            accepted = "a vocabulary with an end-of-sequence id: without one no text ends"
            raise VocabularyError("tokenizer", vocabulary, accepted)
        self.vocabulary = vocabulary
        self.matchers = tuple(_compiled(each, vocabulary) for each in self._constraints)
        self.check_law(PLAIN)

    def check_law(self, law: Law) -> None:
        """Raise what the sampler raises for this law, on a flat row, before there is a real one."""
        flat = np.zeros(len(self.vocabulary), np.float32)
        for matcher in self.matchers:
            state = matcher.start()
            self._sampler.prepare(flat, matcher, state, law=law if law.temperature > 0 else PLAIN)

    def end_at(self, eos_token_id: Any) -> None:
        """End texts where `generate()` stops, unless the caller fixed the vocabulary.

        eos_token_id: of a GenerationConfig: one id, several, or None. VocabularyWarning where they
            differ from the tokenizer's; VocabularyError where a vocabulary that was given ends
            texts with another token.
        """
        stops = _ids(eos_token_id)
        own = self.vocabulary.eos_ids
        if not stops or set(stops) == set(own):
            return
        if self._fixed:
            if own[0] not in stops:
                got = f"end of sequence {own[0]}"
                accepted = f"one of {list(stops)} as the first, where generate() stops"
                raise VocabularyError("tokenizer", got, accepted)
            return
        message = (
            f"end-of-sequence ids differ: generation_config {list(stops)}, "
            f"tokenizer {list(own)}; taken: the former"
        )
        warnings.warn(message, VocabularyWarning, stacklevel=2)
        old = self.vocabulary
        self._compile(
            Vocabulary(
                old.token_bytes,
                eos_ids=stops,
                special_ids=old.special_ids,
                prefix_space=old.prefix_space,
            )
        )

    def for_prompts(self, prompts: int) -> list[Matcher]:
        """The matcher of each prompt."""
        if len(self.matchers) == 1:
            return [self.matchers[0]] * prompts
        if len(self.matchers) != prompts:
            got = f"{len(self.matchers)} constraints for {prompts} prompts"
            raise InputError(
                "constraint", got, "one constraint, or a list with one for each prompt"
            )
        return list(self.matchers)


def _several(constraint: Any) -> tuple[Any, ...]:
    if not isinstance(constraint, (list, tuple)):
        return (constraint,)
    if not constraint:
        raise InputError(
            "constraint", constraint, "one constraint, or a list with one for each prompt"
        )
    return tuple(constraint)


def _is_matcher(constraint: Any) -> bool:
    return hasattr(constraint, "advance") and hasattr(constraint, "vocabulary")


def _compiled(constraint: Any, vocabulary: Vocabulary) -> Matcher:
    if not _is_matcher(constraint):
        from midstream.middleware.constraints import as_constraint

        matcher: Matcher = as_constraint(constraint).compile(vocabulary)
        return matcher
    if constraint.vocabulary != vocabulary:
        got = f"a matcher of {constraint.vocabulary}"
        raise VocabularyError("constraint", got, f"one compiled for the tokenizer's {vocabulary}")
    given: Matcher = constraint
    return given


def _ids(eos_token_id: Any) -> tuple[int, ...]:
    if hasattr(eos_token_id, "tolist"):
        eos_token_id = eos_token_id.tolist()
    if eos_token_id is None:
        return ()
    return (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
