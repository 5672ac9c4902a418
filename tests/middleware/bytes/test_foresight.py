"""What is read ahead changes no law, and spares forwards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from midstream.adapters.transformers import TransformersHost
from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.sorted_row import SortedRow
from midstream.middleware.bytes import Beam, ByteLaw, ByteModel, Canonical, beam, cover
from midstream.middleware.bytes.foresight import Foresight, foretold
from midstream.middleware.bytes.healing import Healed, Healer
from midstream.middleware.bytes.reading import Branches
from midstream.middleware.bytes.strings import Strings

DRAFT = Path(__file__).resolve().parents[2] / "zoo" / "models" / "draft"
TEXT = (
    b"def split(text, width=70):\n\n    lines = []  # na\xc3\xafve\n    for i in range(1234):\n"
    b"        lines.append(text[i:])\n    return lines\n\n\nclass Words:\n    pass\n"
)
# Beams, and how many times the rows a window costs: where one string alone is followed, most.
WINDOWS = [(Beam(1, 0), 3.5), (Beam(2, 1e-4), 2.5), (Beam(4, 1e-7), 2.0)]


@pytest.fixture(scope="module")
def host() -> TransformersHost:
    model = AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float64).eval()
    return TransformersHost(model, AutoTokenizer.from_pretrained(DRAFT))


@pytest.fixture(scope="module")
def canonical(host: TransformersHost) -> Canonical:
    return Canonical.from_tokenizer(host.tokenizer, host.vocabulary)


def the_same(law: ByteLaw, other: ByteLaw) -> None:
    np.testing.assert_allclose(law.p, other.p, rtol=1e-8)
    assert law.log_mass == pytest.approx(other.log_mass, abs=1e-9)
    assert law.log_pruned == pytest.approx(other.log_pruned, abs=1e-7)


def nothing(*_: Any, **__: Any) -> Any:
    return []


@pytest.mark.parametrize(("width", "times"), WINDOWS)
def test_laws_with_a_window_are_those_without(
    host: TransformersHost, width: Beam, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ByteModel(host, target="all", beam=width)
    seen = model.state(TEXT)
    report = model.report(TEXT)
    monkeypatch.setattr(Foresight, "look", nothing)
    blind = model.state(TEXT)
    the_same(seen.law(), blind.law())
    again = model.report(TEXT)
    np.testing.assert_allclose(report.log_p_bytes, again.log_p_bytes, rtol=1e-8)
    assert report.log_pruned == pytest.approx(again.log_pruned, abs=1e-7)
    assert blind.reader.forwards == len(TEXT)
    assert seen.reader.forwards <= len(TEXT) / 4
    assert blind.reader.rows < seen.reader.rows <= times * blind.reader.rows


def test_small_forwards_and_what_is_foreseen_in_vain_change_no_law(
    host: TransformersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ByteModel(host, target="all", beam=Beam(3, 1e-6))
    wanted = model.law(TEXT)
    look, sizes = Foresight.look, []

    def other(self: Foresight, live: Any, length: int, coming: bytes) -> list[int]:
        self._branches.chunk = 16
        found = look(self, live, length, TEXT[::-1][: len(coming)])
        sizes.append(len(found))
        return found

    monkeypatch.setattr(Foresight, "look", other)
    state = model.state(TEXT)
    the_same(state.law(), wanted)
    assert state.reader.forwards > len(TEXT) / 4 and 0 < max(sizes) <= 16


@pytest.mark.parametrize("target", ["canonical", "all"])
def test_bytes_that_were_foretold_and_others_have_the_same_laws(
    host: TransformersHost, canonical: Canonical, target: Any
) -> None:
    model = ByteModel(host, target=target, canonical=canonical, beam=Beam(3, 1e-6))
    rng = np.random.default_rng(0)
    state, text = model.state(TEXT[:20]), bytearray(TEXT[:20])
    before = state.reader.forwards
    pushes = 0
    for step in range(60):
        if step % 9 == 8:
            text = text[: len(text) - int(rng.integers(1, 7))]
            state.rollback(len(text))
        law = state.law().p[:256]
        # Every third byte is one that nobody would foretell.
        byte = int(law.argmax()) if step % 3 else int(rng.choice(np.flatnonzero(law > 1e-6)))
        text.append(byte)
        state.push(bytes([byte]))
        pushes += 1
        if step % 4 == 3:
            the_same(state.law(), model.law(bytes(text)))
    assert state.text == bytes(text)
    assert state.reader.forwards - before < pushes


@pytest.mark.parametrize("target", ["canonical", "all"])
def test_bytes_one_by_one_are_fewer_forwards(
    host: TransformersHost, canonical: Canonical, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ByteModel(host, target=target, canonical=canonical, beam=Beam(3, 1e-6))

    def forwards() -> tuple[int, list[ByteLaw]]:
        state, laws = model.state(TEXT[:10]), []
        first = state.reader.forwards
        for byte in TEXT[10:]:
            state.push(bytes([byte]))
            laws.append(state.law())
        return state.reader.forwards - first, laws

    fewer, laws = forwards()
    monkeypatch.setattr(beam, "foretold", lambda *_, **__: b"")
    monkeypatch.setattr(cover, "foretold", lambda *_, **__: b"")
    count, others = forwards()
    assert count == len(TEXT) - 10 and fewer < 0.9 * count
    for law, other in zip(laws, others, strict=True):
        the_same(law, other)
    monkeypatch.setattr(cover, "foretold", lambda *_, **__: b"zz")
    monkeypatch.setattr(beam, "foretold", lambda *_, **__: b"zz")
    for law, other in zip(laws, forwards()[1], strict=True):
        the_same(law, other)


class Short:
    """The host of a model that takes so many tokens, as its trees see it."""

    def __init__(self, host: TransformersHost, most: int) -> None:
        self._host, self.context_length, self.deepest = host, most, 0
        self.vocabulary, self.tokenizer, self.start = host.vocabulary, host.tokenizer, host.start

    def tree(self, prompts: Any) -> Any:
        tree, logits = self._host.tree(prompts)
        extend, depths = tree.extend, [len(prompt) for prompt in prompts]

        def noted(parents: Any, tokens: Any) -> Any:
            for parent in parents:
                depths.append(depths[parent] + 1)
            self.deepest = max(self.deepest, *depths)
            return extend(parents, tokens)

        tree.extend = noted
        return tree, logits


def test_no_string_is_read_ahead_that_is_longer_than_the_model_takes(
    host: TransformersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = Beam(2, 1e-4)
    free = Short(host, 10**6)
    wanted = ByteModel(free, target="all", beam=width).law(TEXT)
    with monkeypatch.context() as patched:
        patched.setattr(Foresight, "look", nothing)
        narrow = Short(host, 10**6)
        ByteModel(narrow, target="all", beam=width).law(TEXT)
    assert narrow.deepest < free.deepest
    short = Short(host, narrow.deepest)
    the_same(ByteModel(short, target="all", beam=width).law(TEXT), wanted)
    assert short.deepest == narrow.deepest


def test_healing_reads_none_of_that_length_either(
    host: TransformersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = host.tokenizer.encode(TEXT.decode(), add_special_tokens=False)

    def healed(most: int) -> tuple[Healed, int]:
        asked = Short(host, most)
        healer = Healer(asked, host.tokenizer, target="all", beam=Beam(2, 1e-4))
        return healer.heal([prompt], seed=5)[0], asked.deepest

    wanted, free = healed(10**6)
    with monkeypatch.context() as patched:
        patched.setattr(Foresight, "look", nothing)
        _, narrow = healed(10**6)
    assert narrow < free
    assert healed(narrow) == (wanted, narrow)


SPELLED = [b"", b"a", b"b", b"ab", b"abc", b"abd", b"ba", b"c", b"abcde"]


def row_of(**logs: float) -> tuple[SortedRow, ByteSortedVocabulary]:
    known = ByteSortedVocabulary(SPELLED, eos_ids=[0])
    logits = np.full(len(SPELLED), -30.0)
    for text, log in logs.items():
        logits[SPELLED.index(text.encode())] = log
    return SortedRow(logits, known), known


def test_the_likely_rest_of_a_token_is_foretold_while_it_has_its_share() -> None:
    row, known = row_of(abcde=math.log(0.6), abd=math.log(0.3), ab=math.log(0.1))
    a = known.node(b"a")
    assert foretold([(a, 0.0, row)], known, likely=0.95) == b"b"
    assert foretold([(a, 0.0, row)], known, likely=0.5) == b"bcde"
    # Another head has half of the mass: it is not read, but it ends with the text.
    heads = [(a, math.log(0.5), row), (0, math.log(0.5), None)]
    assert foretold(heads, known, likely=0.55) == b""
    assert foretold(heads, known, likely=0.4) == b"b"
    assert foretold(heads[1:], known, likely=0.1) == b""
    assert foretold([(known.node(b"c"), 0.0, row)], known, likely=0.1) == b""
    dark, _ = row_of(abc=math.nan)
    assert foretold([(a, 0.0, dark)], known, likely=0.1) == b""


def test_foresight_takes_the_heaviest_by_what_is_read() -> None:
    row, known = row_of(a=math.log(0.2), ab=math.log(0.5), abc=math.log(0.3))
    strings = Strings()
    branches = Branches(
        strings.parent,
        strings.token,
        root=0,
        logits=row.logits,
        vocabulary=known,
        mask=None,
        inverse_temperature=1.0,
    )
    look = Foresight(strings, branches, known, width=1, log_epsilon=-math.inf).look
    found = look([(0, 0, 0.0)], 0, b"abc")
    assert [strings.path(node) for node in found] == [
        [SPELLED.index(b"a")],
        [SPELLED.index(b"ab")],
        [SPELLED.index(b"abc")],
    ]
    assert [strings.offset[node] for node in found] == [1, 2, 3]
    assert look([(0, 0, 0.0)], 0, b"abc") == found  # a string has one number
    assert look([(0, known.node(b"ab"), 0.0)], 2, b"c") == found[-1:]
    branches.chunk = 1
    assert look([(0, 0, 0.0)], 0, b"abc") == found[:1]
