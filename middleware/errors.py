"""Errors for bad input. All are ValueErrors, raised before any model call."""

from __future__ import annotations


class InputError(ValueError):
    """An argument that cannot be used.

    The message names the argument, what was got and what is accepted; the three are attributes too,
    so that a wire can report them field by field.
    """

    def __init__(self, argument: str, got: object, accepted: str) -> None:
        self.argument = argument
        self.got = got
        self.accepted = accepted
        shown = got if isinstance(got, str) else repr(got)
        if len(shown) > 300:
            shown = shown[:300] + "..."
        super().__init__(f"{argument}: got {shown}; accepted: {accepted}")


class ConstraintError(InputError):
    """A constraint that does not parse, contradicts itself, or is too large to compile."""


class VocabularyError(InputError):
    """A tokenizer whose tokens have no exact bytes, or that does not fit the model."""


class StrategyError(InputError):
    """A decoding option, or a combination of options, that no host can carry out."""
