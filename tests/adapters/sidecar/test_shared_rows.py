"""Rows of many requests in one pass: the logits that each has alone, and nothing left behind."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from midstream.adapters.sidecar import reading, shared_rows
from midstream.adapters.sidecar.forwards import Advance, Forwards, Prompt, Sequences
from midstream.adapters.sidecar.shareable import token_bytes, why_not_shared
from midstream.adapters.sidecar.shared_rows import SharedRows
from midstream.adapters.sidecar.single_rows import SingleRows
from midstream.adapters.sidecar.slots import Slots
from midstream.adapters.transformers import TransformersHost
from midstream.middleware.vocabulary import Vocabulary

SIZE = 32
NOISE = 2e-5
"""Of float32 logits whose largest are about 10: other shapes, another order of summing."""

SMALL: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": SIZE - 1,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def host_of(config: PreTrainedConfig, **settings: Any) -> TransformersHost:
    """A random model of a configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, **settings).eval()
    tokens = [bytes([97 + i % 26, 97 + i // 26]) for i in range(SIZE - 1)]
    eos = SIZE - 1
    return TransformersHost(model, Vocabulary([*tokens, b""], eos_ids=[eos], special_ids=[eos]))


@pytest.fixture(scope="module")
def llama() -> TransformersHost:
    return host_of(LlamaConfig(**SMALL))


def alone(host: TransformersHost, ids: list[int]) -> np.ndarray:
    """The logits after these ids, read from the beginning."""
    with torch.no_grad():
        return host.model(torch.tensor([ids])).logits[0, -1].float().numpy()


@dataclass
class Office:
    """Requests that come, go on, wait and leave at random, and what their rows hold."""

    host: TransformersHost
    rows: Forwards
    chance: random.Random
    live: dict[Sequences, list[list[int]]] = field(default_factory=dict)
    worst: float = 0.0

    def compare(self, ids: list[int], logits: np.ndarray) -> None:
        difference = float(np.abs(logits - alone(self.host, ids)).max())
        self.worst = max(self.worst, difference if np.isfinite(difference) else np.inf)

    def join(self, prompts: list[Prompt]) -> None:
        while prompts:
            count = self.rows.together(prompts)
            some, prompts = prompts[:count], prompts[count:]
            reading = self.rows.begin(some)
            while not reading.read():
                pass
            for prompt, (sequences, logits) in zip(some, self.rows.join(reading), strict=True):
                self.live[sequences] = [[*prompt]]
                self.compare([*prompt], logits[0])

    def leave(self, sequences: Sequences) -> None:
        self.rows.leave(sequences)
        del self.live[sequences]

    def advance(self, going: list[Sequences]) -> None:
        advances = []
        for sequences in going:
            ids = self.live[sequences]
            count = self.chance.choice([1, len(ids), self.chance.randrange(1, 6)])
            parents = [self.chance.randrange(len(ids)) for _ in range(count)]
            tokens = [self.chance.randrange(SIZE) for _ in range(count)]
            advances.append(Advance(sequences, parents, tokens))
            self.live[sequences] = [[*ids[p], t] for p, t in zip(parents, tokens, strict=True)]
        for each, logits in zip(advances, self.rows.advance(advances), strict=True):
            assert len(logits) == len(each.tokens)
            for ids, row in zip(self.live[each.sequences], logits, strict=True):
                self.compare(ids, row)

    def rounds(self, count: int) -> None:
        """Rounds in which each request comes, leaves, waits or goes on."""
        chance = self.chance
        for _ in range(count):
            if chance.random() < 0.3 or not self.live:
                lengths = [chance.choice([1, 3, 7, 40]) for _ in range(chance.randrange(1, 6))]
                prompts = [tuple(chance.choices(range(SIZE), k=length)) for length in lengths]
                self.join([*prompts, prompts[0]])
            for sequences in [*self.live]:
                if chance.random() < 0.08:
                    self.leave(sequences)
            going = [sequences for sequences in self.live if chance.random() < 0.7]
            chance.shuffle(going)
            self.advance(going)


def slots_of(rows: SharedRows) -> Slots:
    return rows._slots


def nothing_left_behind(office: Office, rows: SharedRows) -> None:
    """Beyond the tokens of the rows that are live, all memory is zero."""
    slots = slots_of(rows)
    lengths = np.zeros(slots.rows, int)
    taken = [slot for sequences in office.live for slot in sequences.slots]
    assert sorted(taken) == list(range(len(taken)))
    for sequences in office.live:
        lengths[sequences.slots] = sequences.length
    for tensor in slots._tensors():
        used = (tensor != 0).any(-1).any(1).numpy()
        for slot, length in enumerate(lengths):
            assert not used[slot, length:].any()


@pytest.mark.parametrize("seed", range(4))
def test_logits_are_those_of_each_request_alone(llama: TransformersHost, seed: int) -> None:
    rows = SharedRows(llama)
    office = Office(llama, rows, random.Random(seed))
    for _ in range(12):
        office.rounds(5)
        nothing_left_behind(office, rows)
    assert 0 < office.worst < NOISE
    for sequences in [*office.live]:
        office.leave(sequences)
    office.advance([])
    assert rows.bytes == 0


def test_the_comparison_sees_a_row_in_the_wrong_slot(
    llama: TransformersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slots, "rearrange", lambda *arguments: None)
    office = Office(llama, SharedRows(llama), random.Random(0))
    office.rounds(20)
    assert office.worst > 100 * NOISE


def test_the_comparison_sees_a_column_too_many(
    llama: TransformersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = TransformersHost.forward

    def seeing_all(self: Any, ids: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        mask = None if mask is None else torch.ones_like(mask)
        return true(self, ids, mask, *rest, **named)

    office = Office(llama, SharedRows(llama), random.Random(0))
    monkeypatch.setattr(TransformersHost, "forward", seeing_all)
    office.rounds(20)
    assert office.worst > 100 * NOISE


def test_waiting_rows_cost_nothing(llama: TransformersHost) -> None:
    office = Office(llama, SharedRows(llama), random.Random(0))
    office.join([(1, 2, 3), (4, 5), (6,)])
    first, *waiting = office.live
    before = llama.forwarded_tokens
    for _ in range(5):
        office.rows.advance([Advance(first, [0], [1])])
        office.live[first] = [[*office.live[first][0], 1]]
    assert llama.forwarded_tokens == before + 5
    office.advance(waiting)  # after others went on, in slots that moved
    assert office.worst < NOISE


def test_equal_prompts_are_read_once(llama: TransformersHost) -> None:
    office = Office(llama, SharedRows(llama), random.Random(0))
    before = llama.forwarded_tokens
    office.join([(1, 2, 3, 4)] * 10)
    assert llama.forwarded_tokens == before + 4
    office.advance([*office.live])
    assert office.worst < NOISE


def test_long_prompts_are_read_in_parts(
    llama: TransformersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK_TOKENS", 16)
    rows = SharedRows(llama)
    office = Office(llama, rows, random.Random(1))
    long = tuple(office.chance.choices(range(SIZE), k=100))
    assert rows.together([long, (1, 2)]) == 1
    assert rows.together([(1, 2), (1, 2), (3,), (4, 5, 6, 7, 8), long]) == 4
    parts = rows.begin([long])
    assert [parts.read() for _ in range(7)] == [False] * 6 + [True]
    office.join([long, (1, 2, 3), (4,), (5, 6), long])
    office.rounds(5)
    assert office.worst < NOISE


def test_memory_shrinks_with_the_requests(llama: TransformersHost) -> None:
    rows = SharedRows(llama)
    office = Office(llama, rows, random.Random(2))
    office.join([tuple(office.chance.choices(range(SIZE), k=30)) for _ in range(60)])
    office.join([tuple(office.chance.choices(range(SIZE), k=700))])
    office.advance([])
    most = rows.bytes
    token = token_bytes(llama)
    assert most <= 61 * 701 * token * 1.7
    *leaving, stays = [sequences for sequences in office.live if sequences.length == 30]
    for sequences in [*leaving, *[each for each in office.live if each.length == 700]]:
        office.leave(sequences)
    office.advance([])
    assert rows.bytes < most / 100
    office.advance([stays])
    assert office.worst < NOISE
    office.leave(stays)
    office.advance([])
    assert rows.bytes == 0


def test_a_row_of_nan_harms_no_other(llama: TransformersHost) -> None:
    host = host_of(LlamaConfig(**SMALL))
    poison = 9
    with torch.no_grad():
        host.model.model.embed_tokens.weight[poison] = torch.nan
    rows = SharedRows(host)
    office = Office(host, rows, random.Random(0))
    office.join([(1, 2), (3, 4, 5), (6, 7)])
    bad, good, other = office.live
    (poisoned, well) = rows.advance([Advance(bad, [0, 0], [poison, 1]), Advance(good, [0], [1])])
    assert np.isnan(poisoned[0]).all() and np.isfinite(poisoned[1]).all()
    office.live[good] = [[3, 4, 5, 1]]
    office.compare(office.live[good][0], well[0])
    office.leave(bad)
    for _ in range(4):  # longer than the poisoned row was, where it was
        going = [Advance(good, [0, 0], [1, 2]), Advance(other, [0, 0], [2, 1])]
        for each, logits in zip(going, rows.advance(going), strict=True):
            tokens = each.tokens
            office.live[each.sequences] = [[*office.live[each.sequences][0], t] for t in tokens]
            for ids, row in zip(office.live[each.sequences], logits, strict=True):
                office.compare(ids, row)
    assert office.worst < NOISE


SHARED: dict[str, Callable[[], TransformersHost]] = {
    "gpt2": lambda: host_of(
        GPT2Config(vocab_size=SIZE, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    ),
    "qwen3": lambda: host_of(Qwen3Config(**SMALL)),
    "mistral": lambda: host_of(MistralConfig(**{**SMALL, "sliding_window": None})),
    "eager": lambda: host_of(LlamaConfig(**SMALL), attn_implementation="eager"),
    "float64": lambda: host_of(LlamaConfig(**SMALL), dtype=torch.float64),
}
ALONE: dict[str, tuple[Callable[[], TransformersHost], str]] = {
    "window": (lambda: host_of(MistralConfig(**SMALL, sliding_window=8)), "whole text"),
    "recurrent": (
        lambda: host_of(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"])),
        "whole text",
    ),
    "no positions": (
        lambda: host_of(
            MptConfig(vocab_size=SIZE, d_model=64, n_heads=4, n_layers=2, max_seq_len=128)
        ),
        "no positions",
    ),
    "rope by length": (
        lambda: host_of(
            LlamaConfig(
                **SMALL,
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            )
        ),
        "longest row",
    ),
}


@pytest.mark.parametrize("kind", SHARED)
def test_models_that_share(kind: str) -> None:
    host = SHARED[kind]()
    assert why_not_shared(host) == ""
    office = Office(host, SharedRows(host), random.Random(3))
    office.rounds(15)
    assert office.worst < NOISE


@pytest.mark.parametrize("kind", ALONE)
def test_models_that_do_not_share(kind: str) -> None:
    make, reason = ALONE[kind]
    host = make()
    assert reason in why_not_shared(host)
    assert token_bytes(host) >= 1
    rows = SingleRows(host)
    office = Office(host, rows, random.Random(4))
    office.rounds(12)
    assert office.worst < 10 * NOISE
    office.leave(next(iter(office.live)))
    rows.reset()


def test_half_precision_keeps_its_own_noise() -> None:
    host = host_of(LlamaConfig(**SMALL), dtype=torch.bfloat16)
    assert why_not_shared(host) == ""
    office = Office(host, SharedRows(host), random.Random(5))
    office.rounds(15)
    assert NOISE < office.worst < 0.5


def test_a_model_that_mixes_rows_is_found_out(
    llama: TransformersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = TransformersHost.forward

    def of_one_length(self: Any, ids: Any, mask: Any, at: Any, cache: Any, **named: Any) -> Any:
        return true(self, ids, mask, at.max().expand_as(at), cache, **named)

    monkeypatch.setattr(TransformersHost, "forward", of_one_length)
    assert "that each gives alone" in why_not_shared(llama)
    monkeypatch.setattr(shared_rows.SharedRows, "_arrange", lambda *arguments: 1 / 0)
    assert "ZeroDivisionError" in why_not_shared(llama)
