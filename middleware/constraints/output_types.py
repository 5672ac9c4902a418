"""Constraints from the output types of Outlines."""

from __future__ import annotations

from typing import Any

from midstream.middleware.constraints.all_of import AllOf
from midstream.middleware.constraints.choice import Choice
from midstream.middleware.constraints.constraint import Constraint
from midstream.middleware.constraints.grammar import Grammar
from midstream.middleware.constraints.json_schema import JsonSchema
from midstream.middleware.constraints.predicate import Predicate
from midstream.middleware.constraints.regex import Regex
from midstream.middleware.errors import ConstraintError

_ACCEPTED = (
    "a constraint (Regex, JsonSchema, Grammar, Choice, Predicate, AllOf) or an output type of "
    "Outlines: a pydantic model, TypedDict or dataclass, Literal, Enum, Union, int, float, bool, "
    "str, a date or time, dict, list[...], tuple[...], a function with annotations, a genson "
    "SchemaBuilder, or a term of outlines.types"
)

_KINDS = (Regex, JsonSchema, Grammar, Choice, Predicate, AllOf)


def as_constraint(output_type: Any) -> Constraint:
    """A constraint from a constraint, or from whatever Outlines takes as an output type.

    Outlines says what a type stands for: its schema types become `JsonSchema` with compact white
    space, its grammars `Grammar`, alternatives of plain strings `Choice`, all else the `Regex` that
    Outlines makes, a schema with a `whitespace_pattern` among them. So `str` is a quoted string,
    `bool` True or False, `list[int]` "[1, 2]", and `dict` any JSON value
    with free white space: `JsonSchema({"type": "object"})` is the compact object.

    A plain string is refused, since it could mean a regex, a schema, a grammar or itself.
    ConstraintError for all that Outlines does not take, with its reason.
    """
    if not isinstance(output_type, type) and isinstance(output_type, Constraint):
        return output_type
    if isinstance(output_type, type) and issubclass(output_type, _KINDS):
        raise ConstraintError("output_type", output_type, f"an instance of it, or {_ACCEPTED}")
    if isinstance(output_type, (str, bytes)):
        accepted = "Regex(...), JsonSchema(...) or Grammar(...) of it, or Choice([...]) for itself"
        raise ConstraintError("output_type", output_type, accepted)
    from outlines.types.dsl import python_types_to_terms

    try:
        term = python_types_to_terms(output_type)
    except (
        Exception
    ) as error:  # whatever Outlines, pydantic or genson raise on a type they do not know
        raise ConstraintError("output_type", output_type, f"{_ACCEPTED} ({error})") from error
    return _of_term(term)


def _of_term(term: Any) -> Constraint:
    from outlines.types import dsl

    if isinstance(term, dsl.JsonSchema) and term.whitespace_pattern is None:
        return JsonSchema(term.schema)
    if isinstance(term, dsl.CFG):
        return Grammar(term.definition)
    if isinstance(term, dsl.String):
        return Choice([term.value])
    if isinstance(term, dsl.Alternatives):
        texts = [one.value for one in term.terms if isinstance(one, dsl.String)]
        if texts and len(texts) == len(term.terms):
            return Choice(texts)
    if (
        isinstance(term, dsl.Choice)
        and term.items
        and all(isinstance(one, str) for one in term.items)
    ):
        return Choice(term.items)
    try:
        return Regex(dsl.to_regex(term))
    except ConstraintError:
        raise
    except Exception as error:
        raise ConstraintError("output_type", term, f"{_ACCEPTED} ({error})") from error
