"""Text of a context-free language."""

from __future__ import annotations

import re
from dataclasses import dataclass

from midstream.middleware.constraints.cache import compiled
from midstream.middleware.constraints.lazy import compile_lazy
from midstream.middleware.constraints.ll_compile import LONGEST_TEXT
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

_ACCEPTED = "a grammar in llguidance's variant of Lark, with a rule `start`"

_LITERALS = re.compile(
    r"""
      "(?:\\.|[^"\\\n])*"      # strings, those of inlined JSON among them
    | //[^\n]* | \#[^\n]*      # comments
    | /(?:\\.|[^/\\])+/        # regular expressions
    """,
    re.VERBOSE | re.DOTALL,
)
_ATTRIBUTES = re.compile(r"^\s*[\w!?.-]+\s*\[([^\]]*)\]\s*:", re.MULTILINE)
_NOT_OVER_BYTES = {
    "max_tokens": "counts tokens, and a language is of bytes: bound it by a repetition, /.{0,9}/",
    "temperature": "is not part of a language: it is the strategy's",
    "stop": "takes back text that was written: say `suffix`, or name the ending in the rule",
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """The texts of a grammar.

    lark: in llguidance's variant of Lark: rules in lower case, terminals in upper case, `%ignore`,
        `%import common.X`, inlined `%json { ... }` and `%regex { ... }`; regular expressions in the
        syntax of Rust's `regex`. A terminal, also a string within a rule, takes the longest text it
        can, as in a lexer: `("b" | "bc") "c"` has "bcc" but not "bc", which it would have as one
        terminal. Prefer left recursion or `*` to right recursion, and terminals of several
        characters to rules over single ones: both are faster, and the limits on a step (`LIMITS`)
        are reached later.

    Special tokens (`<name>`, `<[id]>`) and the rule attributes max_tokens, temperature and stop are
    refused, since a language is one of bytes. An inlined schema has flexible white space unless its
    "x-guidance" says otherwise.

    Raises ConstraintError, with llguidance's reason, for a grammar that does not compile, has no
    text, or is too large (see `compile_grammar`).
    """

    lark: str

    def __post_init__(self) -> None:
        if not isinstance(self.lark, str):
            raise ConstraintError("lark", self.lark, _ACCEPTED)
        if len(self.lark) > LONGEST_TEXT:
            raise ConstraintError("lark", self.lark, f"at most {LONGEST_TEXT} characters")
        bare = _LITERALS.sub('""', self.lark)
        if "<" in bare:
            raise ConstraintError("lark", self.lark, f"{_ACCEPTED}, without special tokens (<...>)")
        for attributes in _ATTRIBUTES.findall(bare):
            for name in re.findall(r"\w+", attributes):
                if name in _NOT_OVER_BYTES:
                    reason = f"`{name}` {_NOT_OVER_BYTES[name]}"
                    raise ConstraintError("lark", self.lark, f"{_ACCEPTED} ({reason})")

    @property
    def wild(self) -> bool:
        """Whether a short text may stand for a large grammar: an inlined schema may."""
        return "%json" in self.lark

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """The matcher, kept by `cache`. ConstraintError where it does not compile."""
        return compiled(self, vocabulary, lambda: self._build(vocabulary))

    def _build(self, vocabulary: Vocabulary) -> Matcher:
        return compile_lazy(
            self.lark,
            vocabulary,
            argument="lark",
            got=self.lark,
            accepted=_ACCEPTED,
            wild=self.wild,
        )
