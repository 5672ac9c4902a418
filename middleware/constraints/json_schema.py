"""JSON text that satisfies a JSON Schema."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from midstream.middleware.constraints.cache import compiled
from midstream.middleware.constraints.json_least import least_bytes
from midstream.middleware.constraints.lazy import compile_lazy
from midstream.middleware.constraints.ll_compile import LONGEST_TEXT
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

Whitespace = Literal["compact", "flexible"]

_ACCEPTED = (
    "a JSON Schema, as a dict, as text or as a pydantic model class, that llguidance can compile"
)
_TOO_DEEP = f"{_ACCEPTED} (nested too deeply)"
_NEWEST_DRAFT = "http://json-schema.org/schema"

_COUNTS = frozenset({"minItems", "maxItems", "minProperties", "maxProperties", "multipleOf"})
_TAME_COUNT = 1000


@dataclass(frozen=True, slots=True, init=False)
class JsonSchema:
    """JSON text that satisfies a schema: Draft 2020-12, as far as llguidance 1.7 goes.

    schema: a dict, the text of one, a boolean, or a pydantic model class. Kept as text.
    whitespace: "compact", the default, allows none between the parts of the text: {"a":[1,2]}.
        "flexible" allows any amount there, so that a model can go on adding white space and most of
        its texts never end; say so only where the model was taught such text.

    Members come in the order of `properties`, then others. Numbers without bounds, strings without
    `maxLength` and arrays without `maxItems` have texts of any length, of which a short budget cuts
    many: bound them where that counts. Standard keywords that llguidance does not know (`not`,
    `uniqueItems`, `if`, ...) are a ConstraintError; unknown words are annotations, as the standard
    has it. `$ref` within the schema works, elsewhere it is an error. The key `x-guidance` holds
    llguidance's own options; `whitespace` overrides its `whitespace_flexible`.

    Raises ConstraintError for what is no schema, what contradicts itself (no text, or no finite
    one, satisfies it), and what is too large to compile (see `compile_grammar`), with llguidance's
    reason.
    """

    schema: str
    whitespace: Whitespace

    def __init__(
        self,
        schema: Mapping[str, Any] | str | bool | type[BaseModel],
        *,
        whitespace: Whitespace = "compact",
    ) -> None:
        if whitespace not in get_args(Whitespace):
            raise ConstraintError("whitespace", whitespace, "'compact' or 'flexible'")
        object.__setattr__(self, "schema", _text(schema))
        object.__setattr__(self, "whitespace", whitespace)

    @property
    def wild(self) -> bool:
        """Whether a short schema may stand for a large grammar: large counts do."""
        return any(_wild(part) for part in _members(json.loads(self.schema)))

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """The matcher, kept by `cache`. ConstraintError where it does not compile."""
        return compiled(self, vocabulary, lambda: self._build(vocabulary))

    def _build(self, vocabulary: Vocabulary) -> Matcher:
        schema = json.loads(self.schema)
        try:
            least = least_bytes(schema)
        except RecursionError:
            raise ConstraintError("schema", self.schema, _TOO_DEEP) from None
        if least == math.inf:
            raise ConstraintError(
                "schema", self.schema, f"{_ACCEPTED} (no finite text satisfies it)"
            )
        if isinstance(schema, dict):
            given = schema.get("x-guidance", {})
            if not isinstance(given, dict):
                raise ConstraintError(
                    "schema", self.schema, f"{_ACCEPTED} (x-guidance is no object)"
                )
            if not given.keys().isdisjoint(("item_separator", "key_separator")):
                least = 0  # they may be shorter than JSON's
            options = {**given, "whitespace_flexible": self.whitespace == "flexible"}
            schema = {**schema, "x-guidance": options}
            if str(schema.get("$schema")).rstrip("#") == _NEWEST_DRAFT:
                del schema["$schema"]  # llguidance knows drafts by number alone
        return compile_lazy(
            f"start: %json {json.dumps(schema)}\n",
            vocabulary,
            argument="schema",
            got=self.schema,
            accepted=_ACCEPTED,
            wild=self.wild,
            least_bytes=int(least),
        )


def _text(schema: object) -> str:
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        name = schema.__name__
        try:
            schema = schema.model_json_schema()
        except PydanticUserError as error:
            reason = f"{_ACCEPTED} (pydantic: {error.message})"
            raise ConstraintError("schema", name, reason) from None
    try:
        value = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(value, (Mapping, bool)):
            raise ConstraintError("schema", schema, _ACCEPTED)
        text = json.dumps(dict(value) if isinstance(value, Mapping) else value, allow_nan=False)
    except RecursionError:
        raise ConstraintError("schema", type(schema).__name__, _TOO_DEEP) from None
    except (TypeError, ValueError) as error:
        if isinstance(error, ConstraintError):
            raise
        raise ConstraintError("schema", schema, f"{_ACCEPTED} ({error})") from None
    if len(text) > LONGEST_TEXT:
        raise ConstraintError("schema", text, f"at most {LONGEST_TEXT} characters, not {len(text)}")
    return text


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield from part.items()
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)


def _wild(member: tuple[str, Any]) -> bool:
    """Whether it is a large count."""
    key, value = member
    return (
        key in _COUNTS
        and isinstance(value, (int, float))
        and not -_TAME_COUNT < value < _TAME_COUNT
    )
