"""A constraint as data: what can stand in a file, in a request, or on a wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from midstream.middleware.constraints import AllOf, Choice, Grammar, JsonSchema, Predicate, Regex
from midstream.middleware.constraints.json_schema import Whitespace

DATA = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
"""How every part of a strategy reads its data."""

TAG = "kind:"
"""What the tags of unions begin with, to be told from keys in the path of an error."""

Text: TypeAlias = Annotated[str, Field(strict=True)]


class RegexData(BaseModel):
    """Texts that match a pattern from end to end, in the syntax of Rust's regex crate."""

    model_config = DATA
    regex: Text

    def build(self) -> Regex:
        """The constraint. ConstraintError where the pattern does not parse."""
        return Regex(self.regex)


class JsonSchemaData(BaseModel):
    """JSON texts that satisfy a schema (Draft 2020-12).

    whitespace: "compact" allows none between the parts of the text, "flexible" any amount.
    """

    model_config = DATA
    json_schema: dict[str, Any]
    whitespace: Whitespace = "compact"

    def build(self) -> JsonSchema:
        """The constraint. ConstraintError where the schema is none."""
        return JsonSchema(self.json_schema, whitespace=self.whitespace)


class GrammarData(BaseModel):
    """Texts of a context-free grammar, in llguidance's variant of Lark."""

    model_config = DATA
    grammar: Text

    def build(self) -> Grammar:
        """The constraint. ConstraintError for what a language of bytes cannot have."""
        return Grammar(self.grammar)


class ChoiceData(BaseModel):
    """The texts of a list, and no others."""

    model_config = DATA
    choice: Annotated[tuple[Text, ...], Field(min_length=1)]

    def build(self) -> Choice:
        """The constraint."""
        return Choice(self.choice)


class AllOfData(BaseModel):
    """Texts that satisfy each of several constraints."""

    model_config = DATA
    all_of: Annotated[tuple[ConstraintData, ...], Field(min_length=1)]

    def build(self) -> AllOf:
        """The constraint. ConstraintError where one of them does not parse."""
        return AllOf([part.build() for part in self.all_of])


KINDS: Mapping[str, type[BaseModel]] = {
    "regex": RegexData,
    "json_schema": JsonSchemaData,
    "grammar": GrammarData,
    "choice": ChoiceData,
    "all_of": AllOfData,
}

ACCEPTED = (
    'an object with exactly one of the keys "regex", "json_schema" (which may have "whitespace" '
    'beside it), "grammar", "choice", "all_of". A Predicate is code, not data: use it from Python'
)


def _kind(value: Any) -> str | None:
    """The tag of a constraint's kind; None where no key names one, or several do."""
    if isinstance(value, Mapping):
        named = [kind for kind in KINDS if kind in value]
    else:
        named = [kind for kind, data in KINDS.items() if isinstance(value, data)]
    return TAG + named[0] if len(named) == 1 else None


ConstraintData: TypeAlias = Annotated[
    Annotated[RegexData, Tag("kind:regex")]
    | Annotated[JsonSchemaData, Tag("kind:json_schema")]
    | Annotated[GrammarData, Tag("kind:grammar")]
    | Annotated[ChoiceData, Tag("kind:choice")]
    | Annotated[AllOfData, Tag("kind:all_of")],
    Discriminator(_kind, custom_error_type="kind", custom_error_message=ACCEPTED),
]
"""A constraint as data; its key tells its kind."""

AllOfData.model_rebuild()


def _any(text: bytes) -> bool:
    return True


ANY_TEXT = Predicate(prefix=_any, complete=_any)
"""What stands for no constraint. All that it refuses are control tokens, which are no text."""
