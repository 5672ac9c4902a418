"""Patterns that are refused, and what the error says."""

from __future__ import annotations

import pytest

from midstream.middleware.constraints.automaton_matcher import AutomatonMatcher
from midstream.middleware.constraints.regex import Regex
from midstream.middleware.errors import ConstraintError
from midstream.middleware.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def byte_tokens() -> Vocabulary:
    return Vocabulary([*(bytes([byte]) for byte in range(256)), b""], eos_ids=[256])


@pytest.mark.parametrize(
    ("pattern", "reason", "position"),
    [
        ("ab(c", "unclosed group", 2),
        ("ab)c", "unopened group", 2),
        ("a[bc", "unclosed character class", 1),
        ("a[[bc]", "unclosed character class", 1),
        ("*a", "nothing to repeat", 0),
        ("a|+", "nothing to repeat", 2),
        ("(?i)*", "nothing to repeat", 4),
        ("é{", "begins no count", 1),
        ("a{,3}", "begins no count", 1),
        ("a{12345678901}", "begins no count", 1),
        ("a{3,2}", "is empty", 1),
        ("ab\\", "backslash ends", 2),
        (r"a\y", "no known escape", 1),
        (r"\Z", r"use \z", 0),
        (r"\é", "no known escape", 0),
        (r"\x4", "not followed by what it needs", 0),
        (r"\p", "not followed by what it needs", 0),
        ("(?=a)a", "lookaround", 0),
        ("(?!a)a", "lookaround", 0),
        ("(?<=a)a", "lookaround", 0),
        ("a(?<!a)", "lookaround", 1),
        (r"(a)\1", "backreferences", 3),
        (r"(?P<x>a)\k<x>", "backreferences", 8),
        (r"(?P<x>a)(?P=x)", "backreferences", 8),
        (r"\bword", "word boundaries", 0),
        ("(?P<x>a)(?P<x>b)", "used twice", 8),
        ("(?>a)", "no known group", 0),
        ("(?#note)", "no known group", 0),
        ("(?)", "no known group", 0),
        ("(?z)a", "flag 'z'", 0),
        ("(?-u)a", "flag 'u'", 0),
        ("(?m)^a", "at every line", 4),
        ("(" * 65 + ")" * 65, "nested deeper than 64", 65),
        ("a" + "*" * 65, "nested deeper than 64", 65),
        ("\ud800", "lone surrogate", 0),
        ("a" * 200_001, "longer than 200000", 200_000),
    ],
)
def test_what_does_not_parse_is_refused_at_once(pattern: str, reason: str, position: int) -> None:
    with pytest.raises(ConstraintError) as caught:
        Regex(pattern)
    assert caught.value.argument == "pattern"
    assert reason in str(caught.value.got)
    assert f"at position {position} of" in str(caught.value.got)
    assert "Rust's regex crate" in caught.value.accepted


@pytest.mark.parametrize("pattern", [b"a", None, 3])
def test_what_is_no_string_is_refused(pattern: object) -> None:
    with pytest.raises(ConstraintError, match="pattern: got"):
        Regex(pattern)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a[z-a]", "'[z-a]' is no character class"),
        (r"a\p{Foo}", "is no character class"),
        (r"[^\s\S]", "has no character in it"),
        ("a$b", "no text matches"),
        ("a^b|c$d", "no text matches"),
    ],
)
def test_what_means_nothing_is_refused_on_compiling(
    pattern: str, reason: str, byte_tokens: Vocabulary
) -> None:
    constraint = Regex(pattern)
    with pytest.raises(ConstraintError) as caught:
        constraint.compile(byte_tokens)
    assert reason in str(caught.value)
    assert pattern in str(caught.value).replace("\\\\", "\\")


def test_deep_nesting_within_the_limit_compiles(byte_tokens: Vocabulary) -> None:
    pattern = "(?:a|(?:b" * 32 + "c" + ")+|d)?" * 32
    matcher = Regex(pattern).compile(byte_tokens)
    assert isinstance(matcher, AutomatonMatcher)
    assert matcher.accepts(matcher.start())


def test_equal_patterns_compile_once(byte_tokens: Vocabulary) -> None:
    assert Regex("ab*").compile(byte_tokens) is Regex("ab*").compile(byte_tokens)
    assert Regex("ab*") == Regex("ab*") != Regex("ab+")


def test_edges_inside_a_pattern_too_large_for_an_automaton_are_refused(
    byte_tokens: Vocabulary,
) -> None:
    with pytest.raises(ConstraintError, match="at its edges only"):
        Regex("(^a|b){1,90000}").compile(byte_tokens)
