"""Two engines with nothing in common but their reading of character classes give the same masks."""

from __future__ import annotations

import random

import numpy as np
import pytest

from midstream.middleware.constraints import token_trie
from midstream.middleware.constraints.automaton_matcher import AutomatonMatcher
from midstream.middleware.constraints.lazy import compile_lazy_regex
from midstream.middleware.constraints.regex import Regex
from midstream.middleware.constraints.regex_automaton import determinize
from midstream.middleware.constraints.regex_source import plain_source
from midstream.middleware.constraints.regex_syntax import parse
from midstream.middleware.vocabulary import Vocabulary

PIECES = [
    *("a", "b", "é", "z", r"\.", ".", "[aé]", "[^a]", "[a-f[xyz]]", r"\w", r"\d", r"\s", r"\S"),
    *("[[:alpha:]]", "[]a]", "[^]a-]", "[-a]", r"\xe9", r"\x{E9}", "(?i:É)", "(?i:k)", "(?s:.)"),
    *(r"\p{Greek}", r"\pL", r"\PN", r"[\w&&[^a]]", "[a-z--b]", "漢", "😀", r"\n", r"\-", "(?:)"),
    *("(?x: a b )", "0", r"\{", "[{}]", "]", "}", "'", '"', "/", "[a~~b]", "(?:a|)"),
]
REPEATS = ["*", "+", "?", "{0,2}", "{2}", "{1,}", "*?", "??", "{2,3}"]
TEXT = "aébz.xyfkKK0λ漢😀 \n-{}]'\"/_٣"


def random_pattern(rng: random.Random, depth: int) -> str:
    kind = rng.random()
    if depth == 0 or kind < 0.25:
        return rng.choice(PIECES)
    if kind < 0.55:
        return random_pattern(rng, depth - 1) + random_pattern(rng, depth - 1)
    if kind < 0.75:
        return f"(?:{random_pattern(rng, depth - 1)}|{random_pattern(rng, depth - 1)})"
    return f"(?:{random_pattern(rng, depth - 1)}){rng.choice(REPEATS)}"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    rng = random.Random(5)
    tokens = [bytes([byte]) for byte in range(256)]
    for _ in range(200):
        text = "".join(rng.choice(TEXT) for _ in range(4)).encode()
        begin = rng.randrange(len(text) - 1)
        tokens.append(text[begin : begin + rng.randint(1, 5)])
    return Vocabulary([*tokens, b"", b""], eos_ids=[len(tokens)])


@pytest.mark.parametrize("seed", range(8))
def test_the_automaton_and_the_lazy_engine_agree(seed: int, vocabulary: Vocabulary) -> None:
    rng = random.Random(seed)
    words, others = (np.zeros(vocabulary.mask_words, np.uint32) for _ in range(2))
    for _ in range(15):
        pattern = random_pattern(rng, 3)
        matcher = Regex(pattern).compile(vocabulary)
        assert isinstance(matcher, AutomatonMatcher)
        lazy = compile_lazy_regex(plain_source(parse(pattern)), vocabulary)
        state, node = matcher.start(), lazy.start()
        for _ in range(6):
            matcher.mask(state, words)
            lazy.mask(node, others)
            np.testing.assert_array_equal(words, others, err_msg=pattern)
            bits = np.unpackbits(words.view(np.uint8), bitorder="little")
            tokens = [t for t in np.flatnonzero(bits) if t not in vocabulary.eos_ids]
            if not tokens:
                break
            token = int(rng.choice(tokens))
            state, node = matcher.advance(state, token), lazy.advance(node, token)


@pytest.mark.parametrize("pattern", [r"\w+ \w*", ".{0,9}é", "a|b[0-9]{3}", r"(\pL|0){2,4}\s"])
def test_three_walks_of_the_trie_agree(
    pattern: str, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    automaton = determinize(parse(pattern))
    trie = token_trie.token_trie(vocabulary, automaton)
    states = np.arange(1, automaton.accepting.size)
    together = trie.arrivals(automaton.table, states)
    for price in (0, 1 << 40):  # one by one, then swept
        monkeypatch.setattr(token_trie, "_PAIRS_PER_NODE", price)
        for origin, state in enumerate(states.tolist()):
            mine = together.origin == origin
            expected = dict(zip(together.node[mine], together.state[mine], strict=True))
            nodes, after = trie.arrivals_from(automaton.table, state)
            assert dict(zip(nodes, after, strict=True)) == expected
