"""`ByteModel` on a model of the zoo: batches, states, scores, samples, bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, AutoTokenizer

from midstream.adapters.transformers import TransformersHost
from midstream.middleware.bytes import Beam, ByteModel, Canonical
from midstream.middleware.errors import InputError
from midstream.middleware.vocabulary import Vocabulary

DRAFT = Path(__file__).resolve().parents[2] / "zoo" / "models" / "draft"
TEXT = (
    b"def split(text, width=70):\n\n    lines = []  # na\xc3\xafve\n    for i in range(1234):\n"
    b"        lines.append(text[i:])\n    return lines\n\n\nclass Words:\n    pass\n"
)


@pytest.fixture(scope="module")
def host() -> TransformersHost:
    model = AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float64).eval()
    return TransformersHost(model, AutoTokenizer.from_pretrained(DRAFT))


@pytest.fixture(scope="module")
def canonical(host: TransformersHost) -> Canonical:
    return Canonical.from_tokenizer(host.tokenizer, host.vocabulary)


class PlainHost:
    """The same model without a tree: whole token strings are read again."""

    def __init__(self, host: TransformersHost) -> None:
        self.vocabulary, self.start = host.vocabulary, host.start


@pytest.mark.parametrize("target", ["canonical", "all"])
def test_batches_states_and_hosts_without_a_tree_agree(
    host: TransformersHost, canonical: Canonical, target: Any
) -> None:
    model = ByteModel(host, target=target, canonical=canonical, beam=Beam(3, 1e-6))
    plain = ByteModel(PlainHost(host), target=target, canonical=canonical, beam=Beam(3, 1e-6))
    cuts = [0, 1, 2, 25, 27, 48, 49, 50, 51, 70]
    prefixes = [TEXT[:cut] for cut in cuts]
    contexts = [None if i % 2 else [0, 5, 9] for i in range(len(cuts))]
    laws = model.laws(prefixes, contexts=contexts)
    for prefix, context, law in zip(prefixes, contexts, laws, strict=True):
        for other in (
            model.law(prefix, context_ids=context),
            model.state(prefix, context_ids=context).law(),
        ):
            np.testing.assert_allclose(other.p, law.p, rtol=1e-8)
            assert other.log_mass == pytest.approx(law.log_mass, abs=1e-9)
    for i in (0, 3, 8):
        again = plain.law(prefixes[i], context_ids=contexts[i] or [0])
        np.testing.assert_allclose(again.p, laws[i].p, rtol=1e-8)


def test_a_state_goes_back_and_forth(host: TransformersHost, canonical: Canonical) -> None:
    for target in ("canonical", "all"):
        model = ByteModel(host, target=target, canonical=canonical, beam=Beam(2, 1e-4))
        state = model.state()
        laws = [state.law()]
        for at in range(len(TEXT)):
            state.push(TEXT[at : at + 1])
            laws.append(state.law())
        for length in (len(TEXT) - 3, 100, 20, 0):
            state.rollback(length)
            assert state.text == TEXT[:length]
            np.testing.assert_allclose(state.law().p, laws[length].p, rtol=1e-8)
            state.push(TEXT[length : length + 30])
            np.testing.assert_allclose(state.law().p, laws[len(state.text)].p, rtol=1e-8)
        with pytest.raises(InputError, match="length"):
            state.rollback(len(TEXT) + 1)


def test_the_score_is_the_chain_of_laws(host: TransformersHost, canonical: Canonical) -> None:
    model = ByteModel(host, canonical=canonical)
    report = model.report(TEXT)
    state = model.state()
    for i, byte in enumerate(TEXT):
        law = state.law()
        assert law.log_p[byte] == pytest.approx(report.log_p_bytes[i], abs=1e-8)
        assert law.log_mass == pytest.approx(report.log_masses[i], abs=1e-8)
        state.push(bytes([byte]))
    assert report.log_p == pytest.approx(model.score(TEXT), abs=1e-9)
    assert report.rows <= 1.3 * len(TEXT)
    assert report.bits_per_byte <= report.bits_per_byte_prefix
    ids = host.tokenizer(TEXT.decode(), add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = host.model(torch.tensor([[0, *ids]])).logits[0].log_softmax(-1)
    log_tokens = float(logits[range(len(ids)), ids].sum())
    assert report.log_tokens == pytest.approx(log_tokens, abs=1e-8)
    assert report.tokens == len(ids)
    assert report.log_tokens <= report.log_p
    beam = ByteModel(host, target="all", beam=Beam(4, 0)).report(TEXT[:40])
    both = np.logaddexp(beam.log_p, beam.log_pruned)
    assert model.score(TEXT[:40]) <= both


def test_contexts_of_a_cut_are_few_and_a_byte_is_one_forward(
    host: TransformersHost, canonical: Canonical
) -> None:
    model = ByteModel(host, canonical=canonical)
    state = model.state(TEXT[:40])
    before = state.reader.forwards, state.reader.rows
    for byte in TEXT[40:]:
        assert 1 <= len(state.heads()) <= 6
        state.push(bytes([byte]))
    count = len(TEXT) - 40
    assert state.reader.forwards - before[0] <= count
    assert state.reader.rows - before[1] <= 1.3 * count


def test_samples(host: TransformersHost, canonical: Canonical) -> None:
    for target in ("canonical", "all"):
        model = ByteModel(host, target=target, canonical=canonical, beam=Beam(2, 1e-3))
        prefix = TEXT[:25]
        drawn = model.samples([prefix, TEXT[:7], prefix], 20, [1, 2, 3])
        assert drawn[0] == model.sample(prefix, 20, 1) and drawn[0] != drawn[2]
        assert drawn[0][:11] == model.sample(prefix, 11, 1)
        assert all(len(each) <= 20 for each in drawn)
        assert model.sample(prefix, 0, 1) == b""
        best = model.greedy(prefix, 12)
        law = model.law(prefix)
        assert best[0] == law.log_p.argmax()
        assert model.law(prefix + best[:5]).log_p.argmax() == best[5]


def test_temperatures_of_bytes_and_of_tokens(host: TransformersHost, canonical: Canonical) -> None:
    plain = ByteModel(host, canonical=canonical).next_byte(TEXT[:4])
    cold = ByteModel(host, canonical=canonical, byte_temperature=0.5)
    np.testing.assert_allclose(cold.next_byte(TEXT[:4]), plain**2 / (plain**2).sum(), rtol=1e-9)
    assert cold.sample(TEXT[:4], 5, 1) == cold.sample(TEXT[:4], 5, 1)
    by_tokens = ByteModel(host, canonical=canonical, token_temperature=0.5)
    law = by_tokens.next_byte(TEXT[:4])
    assert law.max() > plain.max() and not np.allclose(law, cold.next_byte(TEXT[:4]), rtol=1e-3)
    hot = ByteModel(host, canonical=canonical, token_temperature=1e6).law(b"")
    assert math.exp(hot.log_special) == pytest.approx(1 / len(host.vocabulary), rel=1e-3)
    for name in ("byte_temperature", "token_temperature"):
        for bad in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(InputError, match=name):
                ByteModel(host, canonical=canonical, **{name: bad})


def test_bytes_that_nothing_covers_have_probability_0(
    host: TransformersHost, canonical: Canonical
) -> None:
    model = ByteModel(host, canonical=canonical)
    for text in (b"ab\xff\xfec", b"\x80", b"\xc3("):
        law = model.law(text)
        assert law.status == "dead" and law.log_mass == -math.inf
        assert model.score(text) == -math.inf
        assert not model.next_byte(text).any()
        assert model.cover(text) == [] and model.sample(text, 5, 0) == b""
        assert model.greedy(text, 5) == b""
        assert not model.report(text + b"abc").log_p_bytes[-1] > -math.inf
        over_all = ByteModel(host, target="all", beam=Beam(2, 1e-3)).law(text)
        assert over_all.status == "running"
    assert model.cover(b"") == [((), 0.0)] and model.score(b"") == 0.0
    few = Vocabulary([b"a", b"ab", b""], eos_ids=[2])
    tiny = ByteModel(FewHost(few), target="all")
    assert tiny.law(b"abc").status == "dead" and tiny.score(b"abc") == -math.inf
    assert tiny.law(b"ab").p[ord("b")] == 0 and tiny.law(b"ab").p[ord("a")] > 0


class FewHost:
    """Equal logits."""

    def __init__(self, vocabulary: Vocabulary, fill: float = 0.0) -> None:
        self.vocabulary, self.fill = vocabulary, fill

    def start(self, prompts: Any) -> Any:
        logits = np.full((len(prompts), len(self.vocabulary)), self.fill)
        return type("Rows", (), {"logits": logits})()


def test_rows_that_are_not_finite_are_a_status() -> None:
    few = Vocabulary([b"a", b"ab", b""], eos_ids=[2])
    for fill in (math.nan, math.inf, -math.inf):
        model = ByteModel(FewHost(few, fill), target="all")
        assert model.law(b"a").status == "dead" and not model.next_byte(b"").any()
        assert model.sample(b"", 3, 0) == b"" and model.greedy(b"", 3) == b""
        assert not model.score(b"aab") > -math.inf


def test_what_is_undecidable_is_served_by_the_beam(host: TransformersHost) -> None:
    made = Tokenizer(
        tokenizer_models.Unigram([("a", -1.0), ("b", -1.0), ("ab", -2.0), ("</s>", 0.0)])
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    few = FewHost(Vocabulary([b"a", b"b", b"ab", b""], eos_ids=[3]))
    few.tokenizer = made  # type: ignore[attr-defined]
    model = ByteModel(few)
    assert model.target == "all" and model.method == "beam"
    assert model.undecided is not None and "tokenizer" in model.undecided
    assert model.law(b"a").target == "all"


def test_bad_input_is_named(host: TransformersHost, canonical: Canonical) -> None:
    with pytest.raises(InputError, match="target"):
        ByteModel(host, target="bytes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="canonical"):
        ByteModel(PlainHost(host))
    with pytest.raises(InputError, match="width"):
        Beam(width=0)
    with pytest.raises(InputError, match="epsilon"):
        Beam(epsilon=1.0)
    model = ByteModel(host, canonical=canonical)
    with pytest.raises(InputError, match="prefixes"):
        model.laws([])
    with pytest.raises(InputError, match="contexts"):
        model.laws([b"a"], contexts=[])
    with pytest.raises(InputError, match="prompt"):
        model.law(b"a", context_ids=[])
    short = TransformersHost(host.model, host.tokenizer)
    short.context_length = 16
    with pytest.raises(InputError, match="at most 16"):
        ByteModel(short, canonical=canonical).law(b"word of " * 30)


def test_the_tokenizers_own_space_stands_before_a_text() -> None:
    words = [b"a", b" a", b" ", b"  a", b""]
    models = {
        spaces: ByteModel(
            FewHost(Vocabulary(words, eos_ids=[4], prefix_space=spaces)),  # type: ignore[arg-type]
            target="all",
        )
        for spaces in ("never", "always", "unless_present")
    }
    covers = {
        spaces: {text: {string for string, _ in model.cover(text)} for text in (b"a", b" a")}
        for spaces, model in models.items()
    }
    one, two = {(1,), (2, 0)}, {(3,), (2, 1), (2, 2, 0)}
    assert covers["never"] == {b"a": {(0,)}, b" a": one}
    assert covers["always"] == {b"a": one, b" a": two}
    assert covers["unless_present"] == {b"a": one, b" a": one}
