"""`Grammar`: llguidance's Lark, as far as it is a language of bytes."""

from __future__ import annotations

from typing import Any

import pytest

from midstream.middleware.constraints import Grammar
from midstream.middleware.errors import ConstraintError, VocabularyError
from midstream.middleware.vocabulary import Vocabulary

REFUSED = {
    "no grammar": ("%%%%", "lexer error"),
    "no start": ("begin: /a/", "start"),
    "empty": ("", "no start rule"),
    "an unknown rule": ("start: foo", 'unknown name: "foo"'),
    "lookahead": ("start: /(?=a)b/", "look-around"),
    "a loop": ("start: start", "no text"),
    "no text": ("start: A\nA: /a/ & /b/", "no text"),
    "a special token": ('start: <|end|> "a"', "special tokens"),
    "an id": ('start: "a" <[5]>', "special tokens"),
    "max_tokens": ("start: x\nx[max_tokens=3]: /.*/", "max_tokens"),
    "stop": ('start: x "b"\nx[lazy, stop="b"]: /.*/', "stop"),
    "stop at the end": ('start: x "b"\nx[stop=""]: /.*/', "stop"),
    "temperature": ("start: x\nx[temperature=0.5]: /.*/", "temperature"),
    "no text at all": (3, "grammar"),
    "an inner schema": (
        'start: %json {"type": "integer", "minimum": 5, "maximum": 1}',
        "minimum (5)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_compile_is_refused(name: str, small_vocabulary: Vocabulary) -> None:
    lark, reason = REFUSED[name]
    with pytest.raises(ConstraintError) as caught:
        Grammar(lark).compile(small_vocabulary)  # type: ignore[arg-type]
    assert caught.value.argument == "lark"
    assert reason in caught.value.accepted


def takes(lark: str, text: str, vocabulary: Vocabulary, spell: Any) -> bool:
    matcher = Grammar(lark).compile(vocabulary)
    state = matcher.start()
    for token in spell(vocabulary, text.encode()):
        state = matcher.advance(state, token)
        if state is None:
            return False
    return matcher.accepts(state)


@pytest.mark.parametrize(
    ("lark", "text", "other"),
    [
        ('start: "<" /[<a]+/ ">" // <not a token>\n', "<<a>", "<>"),
        ('start: "max_tokens=3" | "[stop]:"', "[stop]:", "stop"),
        ("start: x\nx[capture, lazy]: /[a-z]*;/", "ab;", "ab"),
        ('start: x "!"\nx[suffix=";"]: /[a-z]*/', "ab;!", "ab!"),
        ('start: %json {"type": "array", "items": {"const": "<a>"}}', '[ "<a>" ]', '["a"]'),
        ("%import common.INT\nstart: INT INT\n%ignore /[ ]+/", "12 3", "12"),
        ('start: "a" # <x>', "a", "b"),
        ('start: "a" // the last line, without an end', "a", "b"),
        ("start: /[a-c\n]+/", "a\nb", "d"),
        ('start: list\nlist: item | list "," item\nitem: /[0-9]{1,2}/', "1,22,3", "1,,2"),
    ],
)
def test_what_is_taken_and_what_is_not(
    lark: str, text: str, other: str, small_vocabulary: Vocabulary, spell: Any
) -> None:
    assert takes(lark, text, small_vocabulary, spell)
    assert not takes(lark, other, small_vocabulary, spell)


def test_grammars_are_values(small_vocabulary: Vocabulary) -> None:
    assert Grammar('start: "a"') == Grammar('start: "a"')
    assert hash(Grammar('start: "a"')) == hash(Grammar('start: "a"'))
    assert Grammar('start: "a"') != Grammar('start: "b"')
    matcher = Grammar('start: "a"').compile(small_vocabulary)
    assert Grammar('start: "a"').compile(small_vocabulary) is matcher
    assert matcher.tokens_to_finish(matcher.start()) is None
    assert matcher.vocabulary == small_vocabulary


def test_a_token_too_long_for_the_engine_is_an_error_that_names_it() -> None:
    letters = [bytes([code]) for code in range(ord("a"), ord("z") + 1)]
    fits = Vocabulary([*letters, b"a" * 1024, b""], eos_ids=[27])
    matcher = Grammar("start: /[a-z]*/").compile(fits)
    assert matcher.allows(matcher.start(), [26]).all()
    over = Vocabulary([*letters, b"a" * 1025, b""], eos_ids=[27])
    with pytest.raises(VocabularyError, match=r"vocabulary\[26\].*1025 bytes.*at most 1024"):
        Grammar("start: /[a-z]*/").compile(over)
