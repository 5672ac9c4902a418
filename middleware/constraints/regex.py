"""Text that matches a regular expression."""

from __future__ import annotations

from dataclasses import dataclass

from midstream.middleware.constraints.automaton import NEVER, START
from midstream.middleware.constraints.automaton_matcher import AutomatonMatcher
from midstream.middleware.constraints.cache import compiled
from midstream.middleware.constraints.regex_automaton import EmptyLanguageError, determinize
from midstream.middleware.constraints.regex_nfa import AtomError, TooLargeError
from midstream.middleware.constraints.regex_nodes import Node
from midstream.middleware.constraints.regex_source import InnerEdgeError, plain_source
from midstream.middleware.constraints.regex_syntax import ACCEPTED, parse, refuse
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Regex:
    r"""The texts that match a pattern from end to end.

    pattern: in the syntax of Rust's regex crate: classes are Unicode's (`\d` takes any script's
        digits), `.` takes any character but a line feed, `^` and `$` hold where the whole text
        begins and ends. The language is that of the pattern as a set of texts: greed, and the order
        of alternatives, do not matter. Lookaround, backreferences, word boundaries and the flags m
        (with ^ or $), R and -u are not supported.

    Compiles to a byte automaton, whose states are integers, masks and checks agree bit for bit, and
    `tokens_to_finish` is exact. A pattern whose automaton would exceed the bounds of
    `regex_automaton` is compiled lazily by llguidance instead: same language, `tokens_to_finish` is
    None.

    Raises ConstraintError for a pattern that does not parse, is not supported, matches nothing, or
    is too large for both.
    """

    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise ConstraintError("pattern", self.pattern, ACCEPTED)
        parse(self.pattern)

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """The matcher for one vocabulary.

        Raises ConstraintError, also where no tokens of the vocabulary spell any text that matches.
        """
        return compiled(self, vocabulary, lambda: self._matcher(vocabulary))

    def _matcher(self, vocabulary: Vocabulary) -> Matcher:
        node = parse(self.pattern)
        try:
            automaton = determinize(node)
        except TooLargeError:
            return self._lazy(node, vocabulary)
        except EmptyLanguageError:
            refuse(self.pattern, 0, "no text matches")
        except AtomError as fault:
            what = f"{fault.node.source!r} is no character class, or has no character in it"
            refuse(self.pattern, fault.node.position, what)
        matcher = AutomatonMatcher(automaton, vocabulary)
        if matcher.finish_bound == NEVER and matcher.tokens_to_finish(START) == NEVER:
            refuse(self.pattern, 0, "no tokens of this vocabulary spell a text that matches")
        return matcher

    def _lazy(self, node: Node, vocabulary: Vocabulary) -> Matcher:
        from midstream.middleware.constraints.lazy import compile_lazy_regex

        try:
            return compile_lazy_regex(plain_source(node), vocabulary)
        except InnerEdgeError:
            refuse(self.pattern, 0, "so large a pattern may have ^ and $ at its edges only")
        except ConstraintError as fault:
            what = f"too large for an automaton, and for the lazy engine: {fault.accepted}"
            refuse(self.pattern, 0, what)
