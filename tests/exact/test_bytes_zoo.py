"""Byte laws of the zoo's models against sums over all token strings, and over all that the
tokenizer itself makes, in float64.

What counts as canonical is asked of the tokenizer alone: a token string is live if it begins the
encoding of its bytes with something behind them.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.transformers import TransformersHost
from midstream.middleware.bytes.beam import Beam
from midstream.middleware.bytes.model import ByteModel

ZOO = Path(__file__).resolve().parents[1] / "zoo" / "models"
FOLDERS = {"general": embedded_model_path(), "draft": ZOO / "draft", "second": ZOO / "second"}
WORDS = (
    "Größe 12345 naïve 北京 résumé don't we'll 🙂 x=1\n\n\tif a:\r\n   b  = 'ab''c'  # ...  <|end "
)
CORPUS = (
    inspect.getsource(textwrap) + WORDS * 30 + json.dumps({"id": 4096, "ok": [1, 2]})
).encode()
BEHIND = [
    "",
    "a",
    "s",
    "1",
    "11",
    "111",
    " ",
    " a",
    "\n",
    "\na",
    "\n\n",
    ".",
    "'",
    "  a",
    "é",
    "re",
]
# What completes a character that is begun: letters, digits, marks, white space of each length.
TAILS = [
    *(bytes([last]) for last in (0x80, 0xA9, 0xBF, 0xA0, 0x85, 0xB2, 0xAF)),
    *(bytes(tail) for tail in ([0x80, 0x80], [0x9A, 0x80], [0x80, 0xA8], [0x81, 0x9F])),
    *(bytes(tail) for tail in ([0xBF, 0xBF], [0x80, 0xAF], [0x90, 0x80], [0xA0, 0xA9])),
    *(bytes(tail) for tail in ([0x9F, 0x98, 0x80], [0x90, 0x80, 0x80], [0x80, 0x80, 0x80])),
]


@pytest.fixture(scope="module", params=["draft", "second"])
def oracle(request: pytest.FixtureRequest) -> Oracle:
    return Oracle(request.param)


@pytest.fixture(scope="module")
def draft() -> Oracle:
    return Oracle("draft")


class Oracle:
    """A model in float64, and sums over its token strings."""

    def __init__(self, name: str) -> None:
        folder = FOLDERS[name]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.host = TransformersHost(model, tokenizer)
        self.encode = tokenizer.backend_tokenizer.encode_batch_fast
        self.token_bytes = self.host.vocabulary.token_bytes
        self.eos = self.host.vocabulary.eos_ids
        begin = tokenizer.bos_token_id
        self.context = (begin if begin is not None else self.eos[0],)
        self.lead = b" " if name == "second" else b""
        self.laws: dict[tuple[int, ...], np.ndarray] = {}
        self.known: dict[tuple[int, ...], bool] = {(): True}
        self.by_prefix: dict[bytes, list[int]] = {}
        for token, spelling in enumerate(self.token_bytes):
            for end in range(1, min(len(spelling), 13) + 1):
                self.by_prefix.setdefault(spelling[:end], []).append(token)

    def read(self, strings: Sequence[tuple[int, ...]]) -> None:
        """The law behind each token string, by plain forwards of strings of one length."""
        lengths: dict[int, list[tuple[int, ...]]] = {}
        for string in strings:
            if string not in self.laws:
                lengths.setdefault(len(string), []).append(string)
        for same in lengths.values():
            for begin in range(0, len(same), 256):
                part = same[begin : begin + 256]
                ids = torch.tensor([[*self.context, *string] for string in part])
                with torch.no_grad():
                    logits = self.host.model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
                laws = torch.softmax(logits, dim=-1).numpy()
                self.laws |= dict(zip(part, laws, strict=True))

    def inside(self, text: bytes, canonical: bool) -> list[tuple[tuple[int, ...], int]]:
        """Token strings that spell a beginning of the text, with its length."""
        found: list[tuple[tuple[int, ...], int]] = [((), 0)]
        for string, at in found:
            longer = [
                (*string, token)
                for end in range(at + 1, len(text) + 1)
                for token in self.by_prefix.get(text[at:end], ())
                if self.token_bytes[token] == text[at:end]
            ]
            for each in self.live(longer) if canonical else longer:
                found.append((each, at + len(self.token_bytes[each[-1]])))
        return found

    def masses(
        self, text: bytes, *, canonical: bool, ways_on: bool = True
    ) -> tuple[float, np.ndarray]:
        """P(text ...), and the 257 ways on unless they are not wanted."""
        strings = self.inside(text, canonical)
        self.read([string for string, _ in strings])
        total, ways = 0.0, np.zeros(257)
        for string, at in strings:
            p, rest = self.probability(string), text[at:]
            if not rest:
                total += p
                if not canonical or self.ends(string):
                    ways[256] += p * self.laws[string][list(self.eos)].sum()
                if not ways_on:
                    continue
            tokens, after = self.longer(rest)
            if canonical:
                live = set(self.live([(*string, token) for token in tokens.tolist()]))
                some = [(*string, token) in live for token in tokens.tolist()]
                tokens, after = tokens[some], after[some]
            masses = p * self.laws[string][tokens]
            total += float(masses.sum()) if rest else 0.0
            np.add.at(ways, after, masses)
        return total, ways

    @functools.cache  # noqa: B019
    def longer(self, rest: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that go on over some bytes, and the byte of each behind these."""
        tokens = self.by_prefix.get(rest, ()) if rest else range(len(self.token_bytes))
        some = [token for token in tokens if len(self.token_bytes[token]) > len(rest)]
        after = [self.token_bytes[token][len(rest)] for token in some]
        return np.array(some, np.int64), np.array(after, np.int64)

    def probability(self, string: tuple[int, ...]) -> float:
        return math.prod(self.laws[string[:i]][token] for i, token in enumerate(string))

    def spelled(self, string: tuple[int, ...]) -> bytes:
        return b"".join(self.token_bytes[token] for token in string)

    def ends(self, string: tuple[int, ...]) -> bool:
        """Whether the string is the encoding of its bytes."""
        return not string or string in self.encoded([self.spelled(string)])

    def live(self, strings: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Those that begin an encoding of their bytes and something behind them."""
        left = [string for string in strings if string not in self.known]
        spelled = {string: self.spelled(string) for string in left}
        begun = {string for string in left if not decodes(spelled[string])}
        for tail in [b"", *TAILS]:
            some = [s for s in left if (s in begun) == bool(tail) and decodes(spelled[s] + tail)]
            for behind in BEHIND if some else ():
                codes = self.encoded([spelled[s] + tail + behind.encode() for s in some])
                for string, code in zip(some, codes, strict=True):
                    if code[: len(string)] == string:
                        self.known[string] = True
                some = [string for string in some if string not in self.known]
            left = [string for string in left if string not in self.known]
        self.known |= dict.fromkeys(left, False)
        return [string for string in strings if self.known[string]]

    def encoded(self, texts: Sequence[bytes]) -> list[tuple[int, ...]]:
        """Encodings of bytes that begin with what the tokenizer writes before a text."""
        plain = [
            t.removeprefix(self.lead).decode() if t.startswith(self.lead) and decodes(t) else None
            for t in texts
        ]
        some = [t for t in plain if t is not None]
        codes = iter(self.encode(some, add_special_tokens=False) if some else [])
        return [() if t is None else tuple(next(codes).ids) for t in plain]


def decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def prefixes(count: int, seed: int, *, longest: int = 12, shortest_of: int = 1) -> list[bytes]:
    """Cuts of the corpus that begin with a character and end anywhere."""
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        begin = int(rng.integers(len(CORPUS) - longest))
        length = int(rng.integers(0, longest + 1, size=shortest_of).min())
        if CORPUS[begin] & 0xC0 != 0x80:
            found.append(CORPUS[begin : begin + length])
    return found


def test_canonical_is_the_sum_over_what_the_tokenizer_makes(oracle: Oracle) -> None:
    """100 prefixes for each of two tokenizer families."""
    model = ByteModel(oracle.host)
    assert model.target == "canonical" and model.undecided is None
    chosen = prefixes(100, seed=11)
    contexts = []
    for i, (text, law) in enumerate(zip(chosen, model.laws(chosen), strict=True)):
        whole = oracle.lead + text
        mass, ways = oracle.masses(whole, canonical=True, ways_on=i % 5 == 0)
        assert mass > 0
        assert law.status == "running"
        assert math.exp(law.log_mass) == pytest.approx(mass, rel=1e-9), text
        if i % 5 == 0:
            np.testing.assert_allclose(law.p, ways / ways.sum(), rtol=1e-9, err_msg=repr(text))
        contexts.append(len(model.state(text).heads()))
    assert max(contexts) <= 6 and float(np.median(contexts)) <= 3


def test_a_beam_bounds_the_sum_over_all_token_strings(draft: Oracle) -> None:
    """200 prefixes, a narrow and a wide beam."""
    narrow = ByteModel(draft.host, target="all", beam=Beam(1, 0))
    wide = ByteModel(draft.host, target="all")
    chosen = prefixes(200, seed=12, shortest_of=2)
    divergences = []
    for text, rough, fine in zip(chosen, narrow.laws(chosen), wide.laws(chosen), strict=True):
        mass, ways = draft.masses(text, canonical=False)
        truth = ways / ways.sum()
        for law in (rough, fine):
            low, high = law.bounds()
            assert (low <= truth * (1 + 1e-9)).all() and (truth <= high * (1 + 1e-9)).all()
            kept = math.exp(law.log_mass)
            assert kept <= mass * (1 + 1e-9)
            assert mass <= (kept + math.exp(law.log_pruned)) * (1 + 1e-9)
            assert (law.p[truth > 0] > 0).all()
        divergences.append(jensen_shannon_bits(fine.p, truth))
    assert float(np.mean(divergences)) < 1e-6


def jensen_shannon_bits(p: np.ndarray, q: np.ndarray) -> float:
    middle = 0.5 * (p + q)
    total = 0.0
    for law in (p, q):
        some = law > 0
        total += 0.5 * float((law[some] * np.log2(law[some] / middle[some])).sum())
    return total


def test_canonical_is_below_all(draft: Oracle) -> None:
    chosen = prefixes(20, seed=13)
    canonical = ByteModel(draft.host)
    both = ByteModel(draft.host, target="all", beam=Beam(16, 0))
    for one, other in zip(canonical.laws(chosen), both.laws(chosen), strict=True):
        most = np.logaddexp(other.log_mass, other.log_pruned)
        assert one.log_mass <= most + 1e-9


def test_negative_control_special_tokens_spelled_as_text(draft: Oracle) -> None:
    """With its text for bytes, the end of sequence would add its mass to that of '<'."""
    state = b"x = 1\n"
    law = ByteModel(draft.host, target="all").law(state)
    spelled = math.exp(law.log_p[256]) + law.p[ord("<")]
    assert spelled > 1.0001 * law.p[ord("<")]
    mass, ways = draft.masses(state, canonical=False)
    assert law.p[ord("<")] == pytest.approx(ways[ord("<")] / ways.sum(), rel=1e-3)
    assert mass > 0
