"""Exact healing, by enumeration of its draws against all token strings that count."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from midstream.middleware.bytes.beam import Beam
from midstream.middleware.bytes.beyond import Beyond
from midstream.middleware.bytes.canonical import Canonical
from midstream.middleware.bytes.healed_start import healed_start
from midstream.middleware.bytes.healing import Healer
from midstream.middleware.bytes.splits import Split
from midstream.middleware.constraints import Choice, Regex
from midstream.middleware.errors import InputError
from midstream.middleware.law import Law
from midstream.middleware.smc import run
from midstream.middleware.vocabulary import Vocabulary

CORPUS = [
    "def f(x):\n    return x + 1\n\n\nclass A:\n    def get(self):\n        return self.value\n",
    "for i in range(100):\n    print(i, 'it''s', 2026)\n\nimport sys\nreturned = returning\n",
]
Elements = dict[tuple[int, ...], float]


def logits_of(ids: Sequence[int], size: int) -> np.ndarray:
    """A law of the next token that depends on all ids before it."""
    digest = hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).normal(size=size) * 2.0


class TableHost:
    """A host whose law is `logits_of`, and that counts what it is asked."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.read = 0

    def start(self, prompts: Sequence[Sequence[int]]) -> Any:
        self.read += len(prompts)
        rows = [logits_of(prompt, len(self.vocabulary)) for prompt in prompts]
        return type("Rows", (), {"logits": np.stack(rows)})()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<fim>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=special)
    made.train_from_iterator(CORPUS * 20, trainer)
    made.add_tokens([AddedToken("<tool>", special=False)])
    return made


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer, eos_ids=[tokenizer.token_to_id("</s>")])


@pytest.fixture(scope="module")
def canonical(tokenizer: Tokenizer, vocabulary: Vocabulary) -> Canonical:
    return Canonical.from_tokenizer(tokenizer, vocabulary)


@pytest.fixture(scope="module")
def healer(tokenizer: Tokenizer, vocabulary: Vocabulary, canonical: Canonical) -> Healer:
    return Healer(TableHost(vocabulary), tokenizer, canonical=canonical)


def log_laws(size: int, law: Law) -> Callable[[tuple[int, ...]], np.ndarray]:
    def log_law(ids: tuple[int, ...]) -> np.ndarray:
        row = law.read(logits_of(ids, size), None)
        with np.errstate(divide="ignore"):
            return np.log(row.law())

    return log_law


def brute_force(
    places: Any,
    fixed: tuple[int, ...],
    text: bytes,
    law: Law = Law(),  # noqa: B008
    then: Any = None,
    trunk: tuple[int, ...] = (),
) -> Elements:
    """log P of each element of the cover, from whole strings alone: given `fixed` and `trunk`."""
    spelt = places.vocabulary.token_bytes
    log_law = log_laws(len(spelt), law)
    beyond = None if then is None else Beyond(then)
    found: Elements = {}

    def grow(ids: tuple[int, ...], at: int, place: Any, log_p: float) -> None:
        if at == len(text):
            found[ids] = log_p
            return
        row, rest = log_law(ids), text[at:]
        for token, spelling in enumerate(spelt):
            if not spelling or row[token] == -np.inf:
                continue
            if not (rest.startswith(spelling) or spelling.startswith(rest)):
                continue
            behind = places.step(place, token)
            over = spelling[len(rest) :]
            if behind is None or (over and beyond and beyond.state_after(over) is None):
                continue
            grow((*ids, token), at + min(len(spelling), len(rest)), behind, log_p + row[token])

    place = places.start()
    for token in trunk:
        place = places.step(place, token)
    grow((*fixed, *trunk), len(places.vocabulary.decode(trunk)), place, 0.0)
    return found


def drawn(exact: Any, healer: Healer, split: Split, then: Any = None) -> tuple[Elements, list[Any]]:
    """The law of `draw`, by all that it may choose, and what it returned."""
    law: Elements = {}
    results = []
    matchers = None if then is None else [then]
    for probability, healed in exact.runs(lambda s: healer.draw([split], [s], matchers)[0]):
        law[healed.token_ids] = law.get(healed.token_ids, 0.0) + probability
        results.append(healed)
    return law, results


def normal(elements: Elements) -> Elements:
    total = np.logaddexp.reduce(list(elements.values()))
    return {ids: math.exp(p - total) for ids, p in elements.items()}


def close(one: Elements, other: Elements) -> bool:
    assert set(one) == set(other)
    return max(abs(one[ids] / other[ids] - 1) for ids in one) < 1e-9


TEXTS = ["def f(x):\n    retur", "class A:\n    def ge", "it'", "return ", "x = 20", "a\n\n", " im"]


@pytest.mark.parametrize("text", TEXTS)
def test_an_element_has_its_exact_probability(
    exact: Any, healer: Healer, canonical: Canonical, tokenizer: Tokenizer, text: str
) -> None:
    split = healer.splitter.split([0, *tokenizer.encode(text).ids])
    assert split.fixed == (0,) and split.text == text.encode() and split.heads is not None
    elements = brute_force(canonical, (0,), text.encode())
    law, results = drawn(exact, healer, split)
    assert len(law) > 1 and close(law, normal(elements))
    spelt = healer.vocabulary.decode
    for healed in results:
        assert healed.method == "cover" and healed.target == "canonical"
        assert spelt(healed.token_ids) == text.encode() + healed.overshoot
    # log P(cover | what was kept), from the whole prompt's
    kept = results[0].kept
    trunk = results[0].token_ids[:kept]
    log_law = log_laws(len(healer.vocabulary), Law())
    log_trunk = sum(log_law(trunk[:i])[trunk[i]] for i in range(1, kept))
    log_cover = float(np.logaddexp.reduce(list(elements.values())))
    assert results[0].log_cover == pytest.approx(log_cover - log_trunk, abs=1e-9)


def ancestors(split: Split) -> list[int]:
    assert split.heads is not None
    found, node = [], split.cut
    while node >= 0:
        found.append(node)
        node = split.heads.parent[node]
    return found


def tokenizations(tokenizer: Tokenizer, vocabulary: Vocabulary, text: str) -> list[list[int]]:
    """The tokenizer's own, single bytes, and one cut at every third byte."""
    single = {b: t for t, b in enumerate(vocabulary.token_bytes) if len(b) == 1}
    whole = {b: t for t, b in enumerate(vocabulary.token_bytes) if b}
    data = text.encode()
    parts = [data[i : i + 3] for i in range(0, len(data), 3)]
    odd = [
        t for p in parts for t in ([whole[p]] if p in whole else [single[bytes([b])] for b in p])
    ]
    return [tokenizer.encode(text).ids, [single[bytes([b])] for b in data], odd]


@pytest.mark.parametrize("text", TEXTS[:4])
def test_the_law_is_the_same_wherever_the_trunk_is_cut_and_in_whatever_tokens(
    exact: Any, healer: Healer, tokenizer: Tokenizer, vocabulary: Vocabulary, text: str
) -> None:
    laws = []
    for ids in tokenizations(tokenizer, vocabulary, text):
        split = healer.splitter.split([0, *ids])
        for node in ancestors(split):
            moved = Split(split.prompt, split.fixed, split.text, split.heads, node)
            laws.append(drawn(exact, healer, moved)[0])
    assert len(laws) >= 6
    assert all(close(law, laws[0]) for law in laws[1:])


def test_one_token_back_off_fails_the_check(
    exact: Any, healer: Healer, canonical: Canonical, tokenizer: Tokenizer
) -> None:
    """The control: the last id alone taken back, as transformers does."""
    text = "def f(x):\n    retur"
    ids = (0, *tokenizer.encode(text).ids)
    truth = normal(brute_force(canonical, (0,), text.encode()))
    last = healer.vocabulary.token_bytes[ids[-1]]
    kept = ids[:-1]
    row = log_laws(len(healer.vocabulary), Law())(kept)
    spelt = healer.vocabulary.token_bytes
    back = normal({(*kept, t): row[t] for t, b in enumerate(spelt) if b.startswith(last)})
    distance = sum(abs(truth.get(k, 0.0) - back.get(k, 0.0)) for k in {*truth, *back}) / 2
    assert distance > 0.05


@pytest.mark.parametrize(
    "law",
    [
        Law(0.5),
        Law(1.7),
        Law(1.3, top_k=120, truncation="target"),
        Law(top_p=0.9, truncation="target"),
    ],
    ids=str,
)
def test_temperature_and_truncation_are_of_the_target(
    exact: Any, tokenizer: Tokenizer, vocabulary: Vocabulary, canonical: Canonical, law: Law
) -> None:
    healer = Healer(TableHost(vocabulary), tokenizer, canonical=canonical, law=law)
    text = "return "
    split = healer.splitter.split([0, *tokenizer.encode(text).ids])
    found, _ = drawn(exact, healer, split)
    elements = brute_force(canonical, (0,), text.encode(), law, trunk=split.kept[1:])
    expected = normal(elements)
    assert set(found) == set(expected) and len(found) > 3
    assert max(abs(found[ids] / expected[ids] - 1) for ids in found) < 1e-5


def test_truncation_after_the_mask_leaves_the_cover_whole(
    exact: Any, tokenizer: Tokenizer, vocabulary: Vocabulary, canonical: Canonical
) -> None:
    law = Law(top_k=2, truncation="after_mask")
    healer = Healer(TableHost(vocabulary), tokenizer, canonical=canonical, law=law)
    found, _ = drawn(exact, healer, healer.splitter.split([0, *tokenizer.encode("return ").ids]))
    assert close(found, normal(brute_force(canonical, (0,), b"return ")))


def test_greedy_takes_the_most_probable_element(
    exact: Any, tokenizer: Tokenizer, vocabulary: Vocabulary, canonical: Canonical
) -> None:
    healer = Healer(TableHost(vocabulary), tokenizer, canonical=canonical, law=Law(0.0))
    for text in TEXTS:
        (healed,) = healer.heal([[0, *tokenizer.encode(text).ids]])
        elements = brute_force(canonical, (0,), text.encode())
        assert healed.token_ids == max(elements, key=lambda ids: elements[ids])


@pytest.mark.parametrize("constraint", [Choice(["n x", "ned", " 1"]), Regex("n( |[(]).*")])
def test_a_constraint_is_of_the_bytes_behind_the_prompt(
    exact: Any, healer: Healer, canonical: Canonical, tokenizer: Tokenizer, constraint: Any
) -> None:
    matcher = constraint.compile(healer.vocabulary)
    text = "def f(x):\n    retur"
    elements = brute_force(canonical, (0,), text.encode(), then=matcher)
    split = healer.splitter.split([0, *tokenizer.encode(text).ids])
    law, results = drawn(exact, healer, split, matcher)
    free, whole = drawn(exact, healer, split)
    share = sum(free[ids] for ids in law)
    for healed in results:
        assert healed.log_cover == whole[0].log_cover
        assert math.exp(healed.log_weight) == pytest.approx(share, rel=1e-9)
    assert 1 < len(law) < len(free) and close(law, normal(elements))
    for healed in results:
        assert healed.state == Beyond(matcher).state_after(healed.overshoot)
    exotic = Choice(["\x00never"]).compile(healer.vocabulary)
    law, results = drawn(exact, healer, split, exotic)
    assert law and not any(healed.overshoot for healed in results)
    assert all(healed.log_weight < -1 for healed in results)


def test_all_token_strings_within_the_beams_bound(
    exact: Any, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    host = TableHost(vocabulary)
    wide = Healer(host, tokenizer, target="all", beam=Beam(width=500, epsilon=0.0))
    narrow = Healer(host, tokenizer, target="all", beam=Beam(width=2, epsilon=0.0))
    prompt = [0, *tokenizer.encode("x = ret").ids]
    split = wide.splitter.split(prompt)
    elements = brute_force(wide._any, split.fixed, split.text)
    law, results = drawn(exact, wide, split)
    assert results[0].method == "beam" and results[0].target == "all"
    assert close(law, normal(elements)) and results[0].log_pruned == -math.inf
    log_all = float(np.logaddexp.reduce(list(elements.values())))
    (few,) = narrow.heal([prompt])
    assert few.log_cover <= log_all + 1e-9
    assert log_all <= np.logaddexp(few.log_cover, few.log_pruned) + 1e-9


def test_walls_and_switches(healer: Healer, tokenizer: Tokenizer) -> None:
    fim, tool = tokenizer.token_to_id("<fim>"), tokenizer.token_to_id("<tool>")
    ids = tokenizer.encode("retur").ids
    host = healer._host
    before = host.read
    prompts = [[0, *ids, fim], [0, *ids, tool], [fim], [0, *ids]]
    for healed, prompt in zip(
        healer.heal(prompts, heal=[True, True, True, False]), prompts, strict=True
    ):
        assert healed.token_ids == tuple(prompt) and healed.overshoot == b""
        assert healed.log_cover == 0.0
    assert host.read == before  # no model is asked where nothing is drawn
    assert [h.method for h in healer.heal(prompts, heal=[True] * 3 + [False])] == [
        *["whole"] * 3,
        "off",
    ]
    (behind,) = healer.heal([[0, *ids, tool, *ids]])
    assert behind.kept >= len(ids) + 2 and behind.token_ids[: len(ids) + 2] == (0, *ids, tool)


def test_each_prompt_is_drawn_as_it_is_alone(healer: Healer, tokenizer: Tokenizer) -> None:
    prompts = [[0, *tokenizer.encode(text).ids] for text in TEXTS]
    together = healer.heal(prompts, seed=5)
    assert [healer.heal([prompt], seed=5)[0] for prompt in prompts] == together
    several = healer.heal([prompts[3]] * 8, seed=5)
    assert several[0] == together[3] and len({h.token_ids for h in several}) > 1


def test_prompts_that_no_tokenizer_would_make(healer: Healer, vocabulary: Vocabulary) -> None:
    """Invalid UTF-8, and bytes of an added token: all token strings, by the beam."""
    single = {b: t for t, b in enumerate(vocabulary.token_bytes) if len(b) == 1}
    for text in (b"ret\xff\xfe", b"a <tool> b", b"\xe4\xbd"):
        prompt = [0, *(single[bytes([b])] for b in text)]
        (healed,) = healer.heal([prompt])
        assert vocabulary.decode(healed.token_ids) == text + healed.overshoot
        assert healed.status == "running"


def test_bad_input(healer: Healer, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="an empty prompt"):
        healer.heal([[]])
    with pytest.raises(InputError, match="ids from 0 to"):
        healer.heal([[0, 5000]])
    with pytest.raises(InputError, match='"canonical" or "all"'):
        Healer(healer._host, tokenizer, target="some")  # type: ignore[arg-type]
    (one,) = healer.heal([[70]])
    assert one.token_ids == (70,) and one.method == "whole"


class TableRows:
    """Rows of `logits_of` that go on."""

    def __init__(self, prefixes: list[tuple[int, ...]], size: int) -> None:
        self._prefixes = prefixes
        self._size = size
        self.logits = np.stack([logits_of(prefix, size) for prefix in prefixes])

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> TableRows:
        pairs = zip(parents, tokens, strict=True)
        return TableRows([(*self._prefixes[p], t) for p, t in pairs], self._size)


def test_a_healed_run_estimates_the_constraint_given_the_prompts_bytes(
    healer: Healer, canonical: Canonical, tokenizer: Tokenizer
) -> None:
    """The mean of the evidence over seeds, within five standard errors."""
    answers, text = [b"n x", b"ned", b"(", b"n"], "def f(x):\n    retur"
    matcher = Choice(answers).compile(healer.vocabulary)
    prompt, size = [0, *tokenizer.encode(text).ids], len(healer.vocabulary)
    elements = normal(brute_force(canonical, (0,), text.encode()))
    log_law, spelt, end = log_laws(size, Law()), healer.vocabulary.token_bytes, 1

    def ends(ids: tuple[int, ...], left: bytes) -> float:
        row = log_law(ids)
        if not left:
            return math.exp(row[end])
        going = [t for t, b in enumerate(spelt) if b and left.startswith(b)]
        return sum(math.exp(row[t]) * ends((*ids, t), left[len(spelt[t]) :]) for t in going)

    expected = dict.fromkeys(answers, 0.0)
    for ids, p in elements.items():
        beyond = healer.vocabulary.decode(ids)[len(text) :]
        for answer in answers:
            if answer.startswith(beyond):
                expected[answer] += p * ends(ids, answer[len(beyond) :])
    found: dict[bytes, list[float]] = {answer: [] for answer in answers}
    for seed in range(300):
        start = healed_start(healer, prompt, matcher, seed=seed, sequence=seed)
        result = run(
            TableRows([tuple(start.prompt)], size),
            start.matcher,
            particles=2,
            max_new_tokens=6,
            seed=seed,
            begun=start.begun,
            log_weight=start.log_weight,
        )
        for answer in answers:
            weights = [p.log_weight for p in result.particles if p.text_bytes == answer]
            found[answer].append(sum(map(math.exp, weights)) / 2)
    for answer, p in expected.items():
        values = np.array(found[answer])
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - p) < 5 * error + 1e-3 * sum(expected.values()), answer
    assert sum(map(sum, found.values())) > 0
