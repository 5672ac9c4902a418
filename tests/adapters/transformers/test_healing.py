"""`generate(custom_generate=heal(...))`: the exact law, settings, constraints, batches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from midstream.adapters.transformers import heal
from midstream.middleware.bytes.canonical import Canonical
from midstream.middleware.constraints import Choice
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.vocabulary import Vocabulary

BOS, EOS = 0, 1
TEXT = "abra cadabra banana and band, a ban on bandana; abacus bad bar. " * 40
FALSE_ALARM = 1e-4


def agrees(counts: Counter[Any], law: dict[Any, float]) -> bool:
    """Chi-square; what is not among the counted texts is one cell."""
    total = sum(counts.values())
    common = [key for key, p in law.items() if p * total >= 8]
    observed = [counts[key] for key in common]
    expected = [law[key] * total for key in common]
    rest = total - sum(expected)
    if rest >= 1:
        observed.append(total - sum(observed))
        expected.append(rest)
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    return bool(statistic < scipy.stats.chi2.ppf(1 - FALSE_ALARM, len(expected) - 1))


class Case:
    """A tokenizer of 290 tokens, a random Llama of its size, and exact laws of both."""

    def __init__(self, make_llama: Callable[..., Any]) -> None:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.train_from_iterator(
            [TEXT],
            trainers.BpeTrainer(
                vocab_size=290,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                special_tokens=["<s>", "</s>", "<fim>"],
            ),
        )
        self.tokenizer = made
        size = made.get_vocab_size()
        self.model = make_llama(size, seed=3, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)
        self.vocabulary = Vocabulary.from_tokenizer(made, eos_ids=[EOS])
        self.canonical = Canonical.from_tokenizer(made, self.vocabulary)

    def ids(self, text: str) -> list[int]:
        return [BOS, *self.tokenizer.encode(text).ids]

    def log_law(self, ids: tuple[int, ...], temperature: float = 1.0) -> np.ndarray:
        with torch.no_grad():
            logits = self.model(torch.tensor([list(ids)])).logits[0, -1]
        return torch.log_softmax(logits.double() / temperature, -1).numpy()

    def cover(self, text: bytes, temperature: float = 1.0) -> dict[tuple[int, ...], float]:
        """P of each element of the canonical cover, by whole forwards."""
        found: dict[tuple[int, ...], float] = {}

        def grow(ids: tuple[int, ...], at: int, place: Any, log_p: float) -> None:
            if at == len(text):
                found[ids] = math.exp(log_p)
                return
            rest, row = text[at:], None
            for token, spelt in enumerate(self.vocabulary.token_bytes):
                if spelt and (rest.startswith(spelt) or spelt.startswith(rest)):
                    behind = self.canonical.step(place, token)
                    if behind is not None:
                        row = self.log_law(ids, temperature) if row is None else row
                        at_next = at + min(len(spelt), len(rest))
                        grow((*ids, token), at_next, behind, log_p + row[token])

        grow((BOS,), 0, self.canonical.start(), 0.0)
        return found

    def continuations(self, text: bytes, temperature: float = 1.0) -> dict[bytes, float]:
        """The exact law of what follows: an element's bytes beyond, and one token's."""
        elements = self.cover(text, temperature)
        total = sum(elements.values())
        law: Counter[bytes] = Counter()
        for ids, p in elements.items():
            if p / total < 1e-7:
                law[b"rare"] += p / total
                continue
            beyond = self.vocabulary.decode(ids)[len(text) :]
            for token, log_p in enumerate(self.log_law(ids, temperature)):
                spelt = self.vocabulary.token_bytes[token]
                law[beyond + spelt] += p / total * math.exp(log_p)
        return dict(law)


@pytest.fixture(scope="module")
def case(make_llama: Callable[..., Any]) -> Case:
    return Case(make_llama)


def run(case: Case, texts: list[str], healing: Any, **options: Any) -> torch.Tensor:
    rows = [case.ids(text) for text in texts]
    width = max(map(len, rows))
    given = {"do_sample": True, "max_new_tokens": 1, **options}
    return case.model.generate(
        torch.tensor([[EOS] * (width - len(row)) + row for row in rows]),
        attention_mask=torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
        custom_generate=healing,
        **given,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_continuations_have_the_exact_conditional_law(case: Case, temperature: float) -> None:
    text = "a ban"
    healing = heal(case.tokenizer, seed=1)
    out = run(case, [text], healing, num_return_sequences=1200, temperature=temperature)
    counts = Counter(healing.continuations(out))
    law = case.continuations(text.encode(), temperature)
    assert agrees(counts, law)
    elements = case.cover(text.encode(), temperature)
    drawn = Counter(healed.token_ids for healed in healing.healed)
    total = sum(elements.values())
    assert agrees(drawn, {ids: p / total for ids, p in elements.items()})
    assert len(drawn) > 3


def test_one_token_back_off_fails_the_same_test(case: Case) -> None:
    """The control: the last token taken back alone, and its bytes forced by a mask."""
    text = "abra cada"
    ids = case.ids(text)
    last = case.vocabulary.token_bytes[ids[-1]]
    row = np.exp(case.log_law(tuple(ids[:-1])))
    fits = [t for t, b in enumerate(case.vocabulary.token_bytes) if b.startswith(last)]
    draws = np.random.default_rng(0).choice(fits, size=1200, p=row[fits] / row[fits].sum())
    counts = Counter((*ids[:-1], int(token)) for token in draws)
    elements = case.cover(text.encode())
    total = sum(elements.values())
    assert not agrees(counts, {key: p / total for key, p in elements.items()})


def test_a_batch_is_drawn_as_each_alone(case: Case) -> None:
    texts = ["a ban", "abra cad", "bad ", "and"]
    together = heal(case.tokenizer, seed=7)
    out = run(case, texts, together, max_new_tokens=4)
    found = together.continuations(out)
    for text, continuation, healed in zip(texts, found, together.healed, strict=True):
        alone = heal(case.tokenizer, seed=7)
        assert alone.continuations(run(case, [text], alone, max_new_tokens=4)) == [continuation]
        spelt = case.vocabulary.decode(healed.token_ids)
        assert spelt == text.encode() + healed.overshoot
        assert alone.healed[0].log_cover == pytest.approx(healed.log_cover, abs=1e-4)
        assert continuation.startswith(healed.overshoot)


def test_the_tokens_of_the_prompt_do_not_matter(case: Case) -> None:
    single = {b: t for t, b in enumerate(case.vocabulary.token_bytes) if len(b) == 1}
    healing = heal(case.tokenizer, seed=2)
    first = case.ids("a ban")
    second = [BOS, *(single[bytes([b])] for b in b"a ban")]
    outs = []
    for ids in (first, second):
        rows = torch.tensor([ids] * 300)
        case.model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=True,
            max_new_tokens=1,
            custom_generate=healing,
        )
        covers = [healed.log_cover for healed in healing.healed]
        outs.append((Counter(h.token_ids for h in healing.healed), covers[0]))
    assert outs[0][1] == pytest.approx(outs[1][1], abs=1e-4)
    law = case.cover(b"a ban")
    total = sum(law.values())
    for counts, _ in outs:
        assert agrees(counts, {ids: p / total for ids, p in law.items()})


def test_a_constraint_and_its_weights(case: Case) -> None:
    """E[w 1{x}] = p(x), for texts that begin with the prompt and end in the constraint."""
    healing = heal(case.tokenizer, constraint=Choice(["ana", "d", "an"]), seed=3)
    out = run(case, ["a ban"], healing, num_return_sequences=300, max_new_tokens=6)
    texts = healing.continuations(out)
    assert set(texts) <= {b"ana", b"d", b"an"} and len(set(texts)) >= 2
    assert set(healing.processor.status) == {"finished"}
    log_covers = np.array([healed.log_cover for healed in healing.healed])
    weights = np.exp(healing.log_weights + log_covers)
    kept = tuple(healing.healed[0].token_ids[: healing.healed[0].kept])
    expected: Counter[bytes] = Counter()
    spelt = case.vocabulary.token_bytes

    def grow(ids: tuple[int, ...], left: bytes, p: float, answer: bytes) -> None:
        row = np.exp(case.log_law(ids))
        if not left:
            expected[answer] += p * row[EOS]
            return
        for token, bytes_ in enumerate(spelt):
            if bytes_ and left.startswith(bytes_):
                grow((*ids, token), left[len(bytes_) :], p * row[token], answer)

    trunk = case.vocabulary.decode(kept)
    log_trunk = sum(case.log_law(kept[:i])[kept[i]] for i in range(1, len(kept)))
    for ids, p in case.cover(b"a ban").items():
        beyond = case.vocabulary.decode(ids)[len(b"a ban") :]
        for answer in (b"ana", b"d", b"an"):
            if answer.startswith(beyond):
                grow(ids, answer[len(beyond) :], p / math.exp(log_trunk), answer)
    assert case.vocabulary.decode(kept) == trunk
    for answer, p in expected.items():
        each = weights * np.array([text == answer for text in texts])
        error = each.std() / len(each) ** 0.5
        assert abs(each.mean() - p) < 5 * error + 1e-3 * sum(expected.values())


def test_greedy_sink_switches_and_walls(case: Case) -> None:
    parts: list[bytes] = []
    healing = heal(case.tokenizer, sink=parts.append)
    out = run(case, ["a ban"], healing, do_sample=False, max_new_tokens=5)
    assert b"".join(parts) == healing.continuations(out)[0]
    elements = case.cover(b"a ban")
    assert healing.healed[0].token_ids == max(elements, key=lambda ids: elements[ids])
    off = heal(case.tokenizer, heal=[False, True])
    run(case, ["a ban", "a ban"], off, max_new_tokens=2)
    assert [healed.method for healed in off.healed] == ["off", "cover"]
    fim = case.tokenizer.token_to_id("<fim>")
    walled = heal(case.tokenizer)
    case.model.generate(
        torch.tensor([[*case.ids("a ban"), fim]]), max_new_tokens=2, custom_generate=walled
    )
    assert walled.healed[0].method == "whole" and walled.healed[0].overshoot == b""


@contextmanager
def forwards(model: Any) -> Iterator[list[torch.Tensor]]:
    """The ids of each forward."""
    seen: list[torch.Tensor] = []

    def note(_: Any, arguments: Any, named: Any) -> None:
        seen.append(named["input_ids"] if "input_ids" in named else arguments[0])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


LONG = "abra cadabra banana and band, a ban on bandana; abacus bad bar. " * 3 + "a ban"


def test_the_prompt_is_read_once(case: Case) -> None:
    """Prompt, drawn tokens and a few short rows of the cover: whatever the length of the prompt."""
    length = len(case.ids(LONG))
    with forwards(case.model) as seen:
        healing = heal(case.tokenizer, seed=1)
        run(case, [LONG], healing, max_new_tokens=6)
    kept = healing.healed[0].kept
    assert seen[0].shape == (1, kept) and length - 5 <= kept <= length
    assert sum(ids.numel() for ids in seen[1:]) <= 6 + 12
    with forwards(case.model) as seen:
        run(case, [LONG], heal(case.tokenizer, heal=False), max_new_tokens=6)
    assert sum(ids.numel() for ids in seen) == length + 5
    with forwards(case.model) as seen:  # the control: a cache of another kind is made anew
        other = heal(case.tokenizer, seed=1)
        run(case, [LONG], other, max_new_tokens=6, cache_implementation="static")
    assert sum(ids.numel() for ids in seen) >= 2 * kept
    assert other.healed[0].token_ids == healing.healed[0].token_ids


def test_a_batch_goes_on_from_what_was_read(case: Case) -> None:
    """Prompts of many lengths, some that stay as they are: as if each were read from nothing."""
    texts = [LONG, "a ban", "abra cad", "bad ", LONG[40:], "and"]
    switches = [True, True, False, True, True, True]
    with forwards(case.model) as seen:
        healing = heal(case.tokenizer, heal=switches)
        out = run(case, texts, healing, do_sample=False, max_new_tokens=5)
    read = [healed for healed in healing.healed if healed.method == "cover"]
    assert len({healed.kept for healed in read}) > 2 and len(read) < 6
    widest = max(healed.kept for healed in read)
    assert seen[0].shape == (len(read), widest)
    assert sum(ids.numel() for ids in seen[1:]) < 6 * widest  # none is as wide again
    check_against_plain(case.model, healing.healed, out)


def check_against_plain(model: Any, drawn: Any, out: torch.Tensor) -> None:
    """The five greedy tokens behind each drawn prompt are those of the model on its own."""
    for i, healed in enumerate(drawn):
        prompt = torch.tensor([healed.token_ids])
        own = model.generate(prompt, max_new_tokens=5, do_sample=False)[0, prompt.shape[1] :]
        assert out[i, -5:].tolist()[: len(own)] == own.tolist()


IDS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS, "initializer_range": 0.15}
LAYERS = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, **IDS}
OTHERS: dict[str, tuple[Callable[..., Any], bool]] = {
    "positions that are learned": (lambda **ids: GPT2LMHeadModel(GPT2Config(**ids)), True),
    "positions by a bias": (lambda **ids: BloomForCausalLM(BloomConfig(**ids)), True),
    "a window that slides": (
        lambda **ids: MistralForCausalLM(
            MistralConfig(sliding_window=16, num_key_value_heads=2, intermediate_size=64, **ids)
        ),
        False,
    ),
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_other_models_go_on_from_what_was_read_or_read_again(case: Case, kind: str) -> None:
    make, once = OTHERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(vocab_size=case.tokenizer.get_vocab_size(), **LAYERS).eval()
    rows = [case.ids(text) for text in (LONG, "a ban", "bad ")]
    width = max(map(len, rows))
    ids = torch.tensor([[EOS] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    healing = heal(case.tokenizer)
    with forwards(model) as seen:
        given = {"attention_mask": mask, "custom_generate": healing, "do_sample": False}
        out = model.generate(ids, max_new_tokens=5, **given)
    check_against_plain(model, healing.healed, out)
    assert (seen[-5].shape[1] < 8) is once  # the first forward of generate()


def test_a_dead_draw_keeps_the_tokens_of_its_prompt(case: Case) -> None:
    """Those that the model has read are of another token string with the same bytes."""
    single = {b: t for t, b in enumerate(case.vocabulary.token_bytes) if len(b) == 1}
    ids = [BOS, *(single[bytes([b])] for b in LONG[-80:].encode())]
    banned = [[token] for token in range(3, len(case.vocabulary))]
    healing = heal(case.tokenizer)
    out = case.model.generate(
        torch.tensor([ids]), max_new_tokens=3, bad_words_ids=banned, custom_generate=healing
    )
    (healed,) = healing.healed
    assert healed.status == "dead" and out[0, : len(ids)].tolist() == ids
    assert 1 < healed.kept < len(ids) and healing.log_weights[0] == -np.inf


def test_caches_and_positions_of_the_caller_are_refused(case: Case) -> None:
    ids = torch.tensor([case.ids("a ban")])
    for options, match in (
        ({"past_key_values": DynamicCache(config=case.model.config)}, "past_key_values"),
        ({"position_ids": torch.arange(ids.shape[1])[None] + 3}, "position_ids"),
    ):
        with pytest.raises(StrategyError, match=match):
            case.model.generate(
                ids, max_new_tokens=2, custom_generate=heal(case.tokenizer), **options
            )
    run(case, ["a ban"], heal(case.tokenizer), cache_implementation="dynamic")


def test_processors_are_part_of_the_law(case: Case) -> None:
    """A token that is forbidden is in no element of the cover."""
    elements = case.cover(b"a ban")
    banned = max(elements, key=lambda ids: elements[ids])[-1]
    healing = heal(case.tokenizer)
    run(case, ["a ban"], healing, num_return_sequences=200, bad_words_ids=[[banned]])
    assert all(healed.token_ids[-1] != banned for healed in healing.healed)


def test_what_cannot_be_done_is_refused(case: Case) -> None:
    for options, match in (
        ({"num_beams": 2}, "num_beams"),
        ({"top_k": 5}, "truncation"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
    ):
        with pytest.raises(StrategyError, match=match):
            run(case, ["a ban"], heal(case.tokenizer), **options)
    with pytest.raises(StrategyError, match="one prompt"):
        run(case, ["a", "b"], heal(case.tokenizer, sink=print))
    with pytest.raises(StrategyError, match="for each of the 1 prompts"):
        run(case, ["a"], heal(case.tokenizer, heal=[True, True]))
    with pytest.raises(InputError, match="max_new_tokens"):
        run(case, ["a"], heal(case.tokenizer), max_new_tokens=1000)
    for law in ({"truncation": "target"}, {"truncation": "after_mask"}):
        healing = heal(case.tokenizer, **law)  # type: ignore[arg-type]
        run(case, ["a ban"], healing, top_k=150, max_new_tokens=2)
        assert healing.healed[0].status == "running"
