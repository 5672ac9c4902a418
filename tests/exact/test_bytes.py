"""Byte laws against sums over all token strings, on table models with tiny vocabularies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from midstream.middleware.bytes.beam import Beam
from midstream.middleware.bytes.model import ByteModel
from midstream.middleware.vocabulary import Vocabulary

EOS, PAD = 0, 1
MERGES = [("a", "b"), ("b", "a"), ("ab", "a"), ("c", "a"), ("ab", "ab"), ("c", "c"), ("ca", "b")]
SPELLED = ["a", "b", "c", *dict.fromkeys(left + right for left, right in MERGES)]
BPE = Vocabulary([b"", b"", *(s.encode() for s in SPELLED)], eos_ids=[EOS], special_ids=[PAD])
IDS = {text: i + 2 for i, text in enumerate(SPELLED)}


def encode(text: str) -> list[int]:
    """Plain BPE: the merge of the lowest rank, the leftmost first."""
    parts = list(text)
    while True:
        pairs = list(pairwise(parts))
        found = [(MERGES.index(pair), i) for i, pair in enumerate(pairs) if pair in MERGES]
        if not found:
            return [IDS[part] for part in parts]
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


class PairCanonical:
    """Canonical token strings of that BPE: every token stays what it is, and every pair."""

    vocabulary = BPE
    virtual = b""

    def __init__(self) -> None:
        self.single = [bool(b) and encode(b.decode()) == [t] for t, b in enumerate(BPE.token_bytes)]

    def start(self) -> int:
        return -1

    @cache  # noqa: B019
    def step(self, place: int, token: int) -> int | None:
        if not self.single[token]:
            return None
        text = BPE.decode([token] if place < 0 else [place, token]).decode()
        return token if encode(text) == ([token] if place < 0 else [place, token]) else None

    @cache  # noqa: B019
    def mask(self, place: int) -> np.ndarray:
        bits = [t for t in range(len(BPE)) if t == EOS or self.step(place, t) is not None]
        return np.array([sum(1 << t for t in bits)], np.uint32)

    def may_end(self, place: int) -> bool:
        return True


class TableTree:
    def __init__(self, host: TableHost, prompts: Sequence[Sequence[int]]) -> None:
        self.host, self.strings = host, [tuple(prompt) for prompt in prompts]

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        first = len(self.strings)
        for parent, token in zip(parents, tokens, strict=True):
            assert self.strings[parent] is not None, "forgotten"
            self.strings.append((*self.strings[parent], token))
        return np.array([self.host.row(s) for s in self.strings[first:]])

    def keep(self, nodes: Sequence[int]) -> None:
        kept = set(nodes)
        self.strings = [s if i in kept else None for i, s in enumerate(self.strings)]  # type: ignore[misc]


class TableHost:
    """Logits of a hash of the token string: float64, of a given spread."""

    def __init__(self, vocabulary: Vocabulary, *, spread: float = 1.5, extra: int = 1) -> None:
        self.vocabulary = vocabulary
        self.spread, self.extra = spread, extra
        self.rows: dict[tuple[int, ...], np.ndarray] = {}
        self.reads = 0

    def row(self, string: tuple[int, ...]) -> np.ndarray:
        self.reads += 1
        if string not in self.rows:
            seed = [len(string), *(t + 1 for t in string)]
            rng = np.random.default_rng(seed)
            self.rows[string] = self.spread * rng.normal(size=len(self.vocabulary) + self.extra)
        return self.rows[string]

    def law(self, string: tuple[int, ...]) -> np.ndarray:
        weights = np.exp(self.row(string))
        return weights / weights.sum()

    def tree(self, prompts: Sequence[Sequence[int]]) -> tuple[TableTree, np.ndarray]:
        tree = TableTree(self, prompts)
        return tree, np.array([self.row(string) for string in tree.strings])


class Brute:
    """Sums over all token strings, or over those that `counts` lets pass."""

    def __init__(self, host: TableHost, context: tuple[int, ...], counts: Any = None) -> None:
        self.host, self.context = host, context
        self.counts = counts if counts is not None else lambda string: True
        self.token_bytes = host.vocabulary.token_bytes

    def inside(self, text: bytes) -> Iterator[tuple[tuple[int, ...], int, float]]:
        """Token strings that spell a beginning of the text, with its length and P."""
        stack = [((), 0, 1.0)]
        while stack:
            string, at, p = stack.pop()
            yield string, at, p
            law = self.host.law((*self.context, *string))
            for token, spelling in enumerate(self.token_bytes):
                longer = (*string, token)
                if spelling and text.startswith(spelling, at) and self.counts(longer):
                    stack.append((longer, at + len(spelling), p * law[token]))

    def cover(self, text: bytes) -> dict[tuple[int, ...], float]:
        """Every element of the cover, with P."""
        if not text:
            return {(): 1.0}
        found = {}
        for string, at, p in self.inside(text):
            if at == len(text):
                continue
            law = self.host.law((*self.context, *string))
            for token, spelling in enumerate(self.token_bytes):
                if spelling.startswith(text[at:]) and self.counts((*string, token)):
                    found[(*string, token)] = p * law[token]
        return found

    def ends(self, text: bytes) -> float:
        """P of the text and then end of sequence."""
        return sum(
            p * self.host.law((*self.context, *string))[EOS]
            for string, at, p in self.inside(text)
            if at == len(text)
        )

    def masses(self, text: bytes) -> tuple[float, np.ndarray]:
        """P(text ...) and the 257 ways on."""
        ways = np.zeros(257)
        for byte in b"abcd":
            ways[byte] = sum(self.cover(text + bytes([byte])).values())
        ways[256] = self.ends(text)
        return sum(self.cover(text).values()), ways


def canonical_string(string: tuple[int, ...]) -> bool:
    """The whole string, encoded again."""
    return encode(BPE.decode(string).decode()) == list(string)


def texts(count: int, longest: int, seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, size=count).tolist()
    return [bytes(rng.choice(list(b"abc"), size=length).tolist()) for length in lengths]


@pytest.fixture(scope="module")
def host() -> TableHost:
    return TableHost(BPE)


@pytest.mark.parametrize("context", [(), (EOS,), (4, 1)])
def test_canonical_laws_are_those_of_enumeration(host: TableHost, context: Any) -> None:
    model = ByteModel(host, canonical=PairCanonical())
    brute = Brute(host, context, canonical_string)
    chosen = texts(40, 9, seed=1)
    laws = model.laws(chosen, contexts=[context] * len(chosen))
    for text, law in zip(chosen, laws, strict=True):
        mass, ways = brute.masses(text)
        assert law.status == "running" and law.method == "cover" and law.target == "canonical"
        assert math.exp(law.log_mass) == pytest.approx(mass, rel=1e-9)
        np.testing.assert_allclose(law.p, ways / ways.sum(), rtol=1e-9)
        assert law.p.sum() == pytest.approx(1, abs=1e-12)
        alone = model.next_byte(text, context_ids=context)
        np.testing.assert_allclose(alone, law.p, rtol=1e-12)
        np.testing.assert_allclose(np.exp(law.log_p_prefix), ways / mass, rtol=1e-9)
        assert math.exp(law.log_going) + math.exp(law.log_special) <= 1 + 1e-12


def test_all_strings_are_those_of_enumeration_when_nothing_is_left_out(host: TableHost) -> None:
    model = ByteModel(host, target="all", beam=Beam(width=10**6, epsilon=0))
    brute = Brute(host, (EOS,))
    for text in texts(15, 8, seed=2):
        law = model.law(text)
        mass, ways = brute.masses(text)
        assert law.method == "beam" and law.target == "all" and law.log_pruned == -math.inf
        assert math.exp(law.log_mass) == pytest.approx(mass, rel=1e-11)
        np.testing.assert_allclose(law.p, ways / ways.sum(), rtol=1e-11)
        # Where the sum of the 256 bytes, the end and other special ids is the whole.
        assert math.exp(law.log_special) == pytest.approx(1 - ways.sum() / mass, rel=1e-9)
        assert math.exp(law.log_going) + math.exp(law.log_special) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("beam", [Beam(1, 0), Beam(2, 0), Beam(8, 1e-2), Beam(3, 0.3)])
def test_bounds_of_a_narrow_beam_hold_the_truth(host: TableHost, beam: Beam) -> None:
    model = ByteModel(host, target="all", beam=beam)
    brute = Brute(host, (EOS,))
    pruned = 0
    for text in texts(25, 8, seed=3):
        law = model.law(text)
        mass, ways = brute.masses(text)
        truth = ways / ways.sum()
        low, high = law.bounds()
        slack = 1e-12
        assert (low <= truth * (1 + slack)).all() and (truth <= high * (1 + slack)).all()
        kept = math.exp(law.log_mass)
        assert kept <= mass * (1 + slack) <= (kept + math.exp(law.log_pruned)) * (1 + slack) ** 2
        assert (law.p[truth > 0] > 0).all()
        distance = 0.5 * np.abs(law.p - truth).sum()
        going = kept * math.exp(law.log_going)
        assert distance <= math.exp(law.log_pruned) / (going + math.exp(law.log_pruned)) + slack
        pruned += law.log_pruned > -math.inf
    assert pruned > 5


def test_the_score_is_one_forward_of_the_same_sums(host: TableHost) -> None:
    canonical = PairCanonical()
    model = ByteModel(host, canonical=canonical)
    brute = Brute(host, (EOS,), canonical_string)
    for text in texts(20, 9, seed=4):
        report = model.report(text)
        masses = [sum(brute.cover(text[:i]).values()) for i in range(len(text) + 1)]
        np.testing.assert_allclose(np.exp(report.log_masses), masses, rtol=1e-9)
        assert model.score(text) == report.log_p == report.log_masses[-1]
        laws = [brute.masses(text[:i])[1] for i in range(len(text))]
        steps = [ways[byte] / ways.sum() for byte, ways in zip(text, laws, strict=True)]
        np.testing.assert_allclose(np.exp(report.log_p_bytes), steps, rtol=1e-9)
        own = encode(text.decode())
        log_own = sum(math.log(host.law((EOS, *own[:i]))[token]) for i, token in enumerate(own))
        assert report.log_tokens == pytest.approx(log_own, rel=1e-9, abs=1e-12)
        assert report.tokens == len(own)
        both = ByteModel(host, target="all", beam=Beam(10**6, 0)).report(text)
        assert report.log_p <= both.log_p + 1e-12
        everything = [
            sum(Brute(host, (EOS,)).cover(text[:i]).values()) for i in range(len(text) + 1)
        ]
        np.testing.assert_allclose(np.exp(both.log_masses), everything, rtol=1e-9)


@pytest.mark.parametrize("target", ["canonical", "all"])
def test_covers_are_listed_whole(host: TableHost, target: Any) -> None:
    model = ByteModel(host, target=target, canonical=PairCanonical(), beam=Beam(10**6, 0))
    brute = Brute(host, (EOS,), canonical_string if target == "canonical" else None)
    for text in texts(12, 7, seed=5):
        found = dict(model.cover(text))
        wanted = brute.cover(text)
        assert found.keys() == wanted.keys()
        for string, log_p in found.items():
            assert math.exp(log_p) == pytest.approx(wanted[string], rel=1e-9)


def outcomes(law: Any, depth: int, prefix: bytes = b"") -> dict[bytes, float]:
    """Texts of `depth` bytes, or shorter ones that end, with P by the chain of next-byte laws."""
    if depth == 0:
        return {prefix: 1.0}
    ways, found = law(prefix), {}
    for byte in np.flatnonzero(ways).tolist():
        if byte == 256:
            found[prefix + b"$"] = found.get(prefix + b"$", 0.0) + ways[256]
            continue
        for text, p in outcomes(law, depth - 1, prefix + bytes([byte])).items():
            found[text] = found.get(text, 0.0) + ways[byte] * p
    return found


@pytest.mark.parametrize("target", ["canonical", "all"])
@pytest.mark.parametrize("prefix", [b"", b"cabab", b"cc"])
def test_samples_follow_the_chain_of_next_byte_laws(
    host: TableHost, target: Any, prefix: bytes
) -> None:
    model = ByteModel(host, target=target, canonical=PairCanonical(), beam=Beam(10**6, 0))
    brute = Brute(host, (EOS,), canonical_string if target == "canonical" else None)

    def law(text: bytes) -> np.ndarray:
        ways = brute.masses(prefix + text)[1]
        return np.asarray(ways / ways.sum())

    count, depth = 2000, 3
    wanted = outcomes(law, depth)
    drawn = model.samples([prefix] * count, depth, range(count))
    found = Counter(text if len(text) == depth else text + b"$" for text in drawn)
    # One false alarm in 10^5 for each test.
    assert chi_square(found, wanted, count) < chi2.ppf(1 - 1e-5, cells(wanted, count) - 1)
    assert set(found) <= set(wanted)
    assert drawn[17] == model.sample(prefix, depth, 17)


def test_negative_control_drawing_no_token_again_is_another_law(host: TableHost) -> None:
    """Masks alone, token by token: the locally masked law, which the same check tells apart."""
    canonical, prefix, count, depth = PairCanonical(), b"cabab", 3000, 3
    brute = Brute(host, (EOS,), canonical_string)

    def law(text: bytes) -> np.ndarray:
        ways = brute.masses(prefix + text)[1]
        return np.asarray(ways / ways.sum())

    rng, found = np.random.default_rng(0), Counter[bytes]()
    cover = [(s, p) for s, p in ByteModel(host, canonical=canonical).cover(prefix)]
    shares = np.exp([p for _, p in cover])
    for _ in range(count):
        string = cover[rng.choice(len(cover), p=shares / shares.sum())][0]
        text = BPE.decode(string)
        while len(text) < len(prefix) + depth:
            row = host.law((EOS, *string))[: len(BPE)] * unpack(canonical.mask(string[-1]))
            token = int(rng.choice(len(BPE), p=row / row.sum()))
            if token == EOS:
                text += b"$"
                break
            string, text = (*string, token), text + BPE.token_bytes[token]
        found[text[len(prefix) : len(prefix) + depth]] += 1
    wanted = outcomes(law, depth)
    assert chi_square(found, wanted, count) > 2 * chi2.ppf(1 - 1e-5, cells(wanted, count) - 1)


def unpack(mask: np.ndarray) -> np.ndarray:
    return np.array([int(mask[0]) >> t & 1 for t in range(len(BPE))])


def cells(wanted: dict[bytes, float], count: int) -> int:
    return sum(p * count >= 5 for p in wanted.values()) + 1


def chi_square(found: Counter[bytes], wanted: dict[bytes, float], count: int) -> float:
    total, rest, seen = 0.0, 0.0, 0
    for text, p in wanted.items():
        if p * count >= 5:
            total += (found[text] - p * count) ** 2 / (p * count)
        else:
            rest, seen = rest + p * count, seen + found[text]
    return total + (seen - rest) ** 2 / max(rest, 1e-9) if rest > 1e-6 else total
