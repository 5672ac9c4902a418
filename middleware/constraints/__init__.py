"""Constraints: what is wanted of a text.

`constraint.compile(vocabulary)` gives the matcher that a sampler asks.
"""

from __future__ import annotations

from midstream.middleware.constraints.all_of import AllOf
from midstream.middleware.constraints.choice import Choice
from midstream.middleware.constraints.constraint import Constraint
from midstream.middleware.constraints.grammar import Grammar
from midstream.middleware.constraints.json_schema import JsonSchema
from midstream.middleware.constraints.output_types import as_constraint
from midstream.middleware.constraints.predicate import Predicate, PredicateError
from midstream.middleware.constraints.regex import Regex

__all__ = [
    "AllOf",
    "Choice",
    "Constraint",
    "Grammar",
    "JsonSchema",
    "Predicate",
    "PredicateError",
    "Regex",
    "as_constraint",
]
