"""Cuts found from left to right against the pre-tokenizers themselves."""

from __future__ import annotations

import random
import unicodedata

import pytest
from tokenizers import Regex, pre_tokenizers

from midstream.middleware.bytes.splitting.chain import Chain
from midstream.middleware.bytes.splitting.characters import members_of, partition
from midstream.middleware.bytes.splitting.cuts import Cut, Pattern, chain_of, edges_of
from midstream.middleware.bytes.splitting.pattern import Repeat, Sequence, parse
from midstream.middleware.bytes.splitting.pattern_cuts import PatternCuts
from midstream.middleware.bytes.splitting.spelling import completions
from midstream.middleware.bytes.undecidable import Undecidable

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)
LOWER, UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OTHERS = [
    r"(?:ab|a)(?:bc)?",
    r"a+?b|ab*",
    r"\d{2,3}|[a-z]{2}(?=\s|$)",
    r"(ab|a)(c|bcd)|.",
    r"\p{N}{1,2}+|x",
    r"(?:a|ab)(?:c|bcd)(?:d*)",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))|[^\p{N}]+",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))| ?\p{L}+|\s+(?!\S)|\s+",
    r"[ab]+(?!bc)|b(?=.d)|.",
    r"(?=(\d{3})+(?!\d))",
    r"(?!ab)",
]
PIECES = [*" \n\t\r'abcdstAB129.,(_ÉéЖ日한½ſ", "  ", "\n\n", "\r\n", "'s", "'re", "'LL", "ll", "12"]
PIECES += [
    "1234",
    "56",
    "e\u0301",
    "👩",
    "\u200d",
    "\u00a0",
    "\u3000",
    "\x85",
    "\x00",
    "bcd",
    "abc",
    "/",
    "x ",
]


def cut_places(chain: Chain, kinds: list[int]) -> list[int]:
    """Where the cuts are, by the one way that survives to the end."""
    ways: dict[int, list[int]] = {0: []}
    for place, kind in enumerate(kinds):
        behind: dict[int, list[int]] = {}
        for state, cuts in ways.items():
            for cut, after in chain.step(state, kind):
                found = [*cuts, place] if cut else cuts
                assert behind.setdefault(after, found) == found
        ways = behind
    (survivor,) = [cuts for state, cuts in ways.items() if chain.ends(state)]
    return survivor


def texts(seed: int, number: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(PIECES, k=chance.randrange(1, 12))) for _ in range(number)]


def check(cuts: list[Cut], pre_tokenizer: object, number: int = 400) -> None:
    chain, characters = chain_of(
        cuts, "tokenizers", spelled=None, marked=False, prefix_space="never"
    )
    for text in texts(len(cuts), number):
        truth = [start for _, (start, _) in pre_tokenizer.pre_tokenize_str(text)]
        kinds = characters.of[[ord(letter) for letter in text]].tolist()
        assert cut_places(chain, kinds) == truth, text


def isolated(pattern: str) -> pre_tokenizers.Split:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def pattern_cut(pattern: str) -> Cut:
    return Pattern(parse(pattern, "tokenizers"), False)


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3, CL100K, O200K, DEEPSEEK, *OTHERS])
def test_matches_of_a_pattern(pattern: str) -> None:
    check([pattern_cut(pattern)], isolated(pattern))


def test_a_sequence_cuts_the_pieces_of_the_one_before() -> None:
    kana = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
    patterns = [r"\p{N}{1,3}", kana, DEEPSEEK]
    cuts = [pattern_cut(pattern) for pattern in patterns]
    check(cuts, pre_tokenizers.Sequence([isolated(pattern) for pattern in patterns]))


@pytest.mark.parametrize(
    "behaviour", ["isolated", "contiguous", "merged_with_previous", "merged_with_next"]
)
def test_characters_that_are_cut_out(behaviour: str) -> None:
    name = "".join(word.capitalize() for word in behaviour.split("_"))
    check([edges_of(r"\p{N}", name)], pre_tokenizers.Split(Regex(r"\p{N}"), behaviour))


def test_digits_before_gpt2s_pattern() -> None:
    steps = [pre_tokenizers.Digits(individual_digits=True), isolated(GPT2)]
    check(
        [edges_of(r"\p{N}", "Isolated"), pattern_cut(GPT2)],
        pre_tokenizers.Sequence(steps),
    )


class Forgetful(PatternCuts):
    """Guesses where a match ends, and never asks whether it was right."""

    def step(self, state: int, kind: int) -> tuple[tuple[bool, int], ...]:
        keys = [(cut, self._keys[after]) for cut, after in super().step(state, kind)]
        nothing = self._keys[0].guesses
        return tuple([(cut, self._number(key._replace(guesses=nothing))) for cut, key in keys])


def test_control_guesses_that_are_not_held_to_are_caught() -> None:
    chain, characters = chain_of(
        [pattern_cut(GPT2)], "tokenizers", spelled=None, marked=False, prefix_space="never"
    )
    kinds = characters.of[[ord(letter) for letter in "\n\nclass"]].tolist()
    assert cut_places(chain, kinds) == [0, 1, 2]
    (right,) = chain.splitters
    assert isinstance(right, PatternCuts)
    wrong = Forgetful(right.program, characters.count, gaps=True)
    with pytest.raises((AssertionError, ValueError)):
        cut_places(Chain([wrong], characters.count), kinds)


@pytest.mark.parametrize(
    "pattern",
    [r"\bword\b", r"(?<=a)b", r"(?<!a)b", r"(a)\1", r"a(?=b(?!cd))", r"(?:ab)++", r"^a"],
)
def test_what_cannot_be_followed_is_refused(pattern: str) -> None:
    with pytest.raises(Undecidable, match="pre-tokenizer"):
        cut = pattern_cut(pattern)
        chain_of([cut], "tokenizers", spelled=None, marked=False, prefix_space="never")


@pytest.mark.parametrize("pattern", [r"a*", r"a|", r"(?=b)a*"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(Undecidable, match="nothing at all"):
        chain_of(
            [pattern_cut(pattern)], "tokenizers", spelled=None, marked=False, prefix_space="never"
        )


def test_braces_before_a_plus_are_read_as_the_engine_reads_them() -> None:
    ruby, rust = parse(r"\d{1,3}+", "tokenizers"), parse(r"\d{1,3}+", "tiktoken")
    assert isinstance(ruby, Repeat) and isinstance(ruby.body, Repeat) and ruby.high is None
    assert isinstance(rust, Repeat) and rust.mode == "possessive" and rust.high == 3
    assert isinstance(parse("ab", "tiktoken"), Sequence)


@pytest.mark.parametrize("engine", ["tokenizers", "tiktoken"])
def test_classes_are_the_engines_own(engine: str) -> None:
    if engine == "tiktoken":
        pytest.importorskip("tiktoken")
    letters, spaces = members_of(r"\p{L}", engine), members_of(r"\s", engine)
    for point in [*range(0x250), 0x3B1, 0x416, 0x65E5, 0xAC00, 0x1D518]:
        assert letters[point] == unicodedata.category(chr(point)).startswith("L"), hex(point)
    assert spaces[[0x20, 0x0A, 0x85, 0xA0, 0x3000]].all() and not spaces[[0x41, 0x200B]].any()
    folded = members_of("(?i:s)", engine)
    assert folded[[ord("s"), ord("S"), 0x17F]].all() and folded.sum() == 3
    characters = partition({"letters": letters, "spaces": spaces})
    assert characters.count == 3
    assert characters.member("letters", "日") and not characters.member("spaces", "日")
    assert characters.between(ord("a"), ord("z")) == characters.atoms["letters"]


def test_what_a_begun_character_may_become() -> None:
    for character in "é日😀\u0800\ud7ff\uffff\U0010ffff":
        spelling = character.encode()
        for size in range(1, len(spelling)):
            low, high = completions(spelling[:size])
            assert low <= ord(character) <= high
            assert chr(high).encode("utf-8", "surrogatepass").startswith(spelling[:size])
            assert chr(low).encode("utf-8", "surrogatepass").startswith(spelling[:size])
    for wrong in (b"\xc0", b"\xc1", b"\xf5", b"\xed\xa0", b"\xe0\x80", b"\xf4\x90", b"\x80"):
        assert completions(wrong) is None
