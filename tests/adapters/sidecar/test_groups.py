"""The state of a stream against the same strategy in process, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.adapters.sidecar.groups import SequenceGroup
from midstream.adapters.sidecar.particle_group import ParticleGroup
from midstream.adapters.sidecar.sequences import RowOf
from midstream.kernels.bitmask import unpack_mask
from midstream.middleware.budget import within_budget
from midstream.middleware.constraints import Predicate, Regex
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.law import PLAIN, Law
from midstream.middleware.matcher import Matcher
from midstream.middleware.random import Stream
from midstream.middleware.sampling import AWRS, Auto, Mask, Sampler
from midstream.middleware.smc import SMC, run
from midstream.middleware.vocabulary import Vocabulary

VOCABULARY = Vocabulary([b"a", b"b", b"ab", b"ba", b"aab", b"", b""], eos_ids=[5, 6])
EOS = 5
ROW = 9  # two ids of padding
MATCHER = Regex("(ab|ba)+").compile(VOCABULARY)


def logits_of(*tokens: int, scale: float = 2.0) -> np.ndarray:
    """The row after some tokens: what a model would say, any fixed function of them."""
    seed = [len(tokens), *tokens]
    return np.random.default_rng(seed).normal(size=ROW, scale=scale).astype(np.float32)


def group(
    answer: Any = "token",
    *,
    matcher: Matcher = MATCHER,
    sampler: Sampler | None = None,
    law: Law = PLAIN,
    seed: int = 1,
    max_new_tokens: int = 6,
    most: int = 64,
) -> SequenceGroup:
    return SequenceGroup(
        matcher,
        answer=answer,
        sampler=sampler or Auto(),
        law=law,
        seed=seed,
        max_new_tokens=max_new_tokens,
        row_size=ROW,
        most=most,
    )


def alone(
    sequence: int, *, sampler: Sampler, law: Law, seed: int, max_new_tokens: int
) -> tuple[list[int], float, str]:
    """One sequence by `sampler.draw`, no group around it."""
    matcher = within_budget(MATCHER, max_new_tokens)
    state, tokens, total = matcher.start(), [], 0.0
    for position in range(max_new_tokens):
        stream = Stream(seed, sequence, position)
        draw = sampler.draw(logits_of(*tokens), matcher, state, stream, law=law)
        total += draw.log_weight
        if draw.token < 0:
            return tokens, total, draw.status
        tokens.append(draw.token)
        if draw.status == "finished":
            return tokens, total, "finished"
        state = matcher.advance(state, draw.token)
    return tokens, total, "length"


SAMPLERS = {"mask": Mask(), "awrs": AWRS(rejects=64), "auto": Auto()}
LAWS = {
    "plain": PLAIN,
    "warm": Law(temperature=1.7),
    "target": Law(top_k=4, truncation="target"),
    "after": Law(top_p=0.8, truncation="after_mask"),
}


@pytest.mark.parametrize(
    ("sampler", "law"),
    # awrs refuses truncation after the mask
    [(s, law) for s in SAMPLERS for law in LAWS if (s, law) != ("awrs", "after")],
)
def test_many_sequences_in_one_step_are_each_the_one_in_process(sampler: str, law: str) -> None:
    options = {"sampler": SAMPLERS[sampler], "law": LAWS[law], "seed": 7, "max_new_tokens": 6}
    together = group("token", **options)
    numbers = {100 + i: 31 * i for i in range(12)}
    tokens: dict[int, list[int]] = {id: [] for id in numbers}
    last: dict[int, Any] = {}
    for step in range(6):
        # Rows leave as they end, late ones join, and the order changes from step to step.
        ids = [id for id in numbers if id not in last or last[id].status == "running"]
        ids = [id for id in ids if id % 2 == 0 or step > 0][:: 1 if step % 2 else -1]
        rows = [RowOf(id, sequence=numbers[id]) for id in ids]
        answered = together.step(rows, np.stack([logits_of(*tokens[id]) for id in ids]))
        assert answered.offered is None
        for row in answered.rows:
            last[row.id] = row
            if row.token >= 0:
                tokens[row.id].append(row.token)
    for id, sequence in numbers.items():
        if last[id].status == "running":
            continue  # it joined a step later and has one token less
        expected = alone(sequence, **options)
        assert (tokens[id], last[id].total_log_weight, last[id].status) == expected
    assert {row.status for row in last.values()} >= {"finished"}


def test_another_number_is_another_text_and_the_same_number_the_same() -> None:
    texts = []
    for sequence in (3, 3, 4, 5, 6):
        options: Any = {"sampler": Mask(), "law": PLAIN, "seed": 7, "max_new_tokens": 6}
        texts.append(alone(sequence, **options))
    assert texts[0] == texts[1]
    assert len({tuple(tokens) for tokens, _, _ in texts}) > 1


def test_a_fork_stands_where_the_first_does_and_draws_its_own_numbers() -> None:
    g = group("token", sampler=Mask())
    (first,) = g.step([RowOf(1, sequence=10)], logits_of()[None]).rows
    g.fork(1, 2, 20)
    row = logits_of(first.token)
    answers = g.step([RowOf(1), RowOf(2)], np.stack([row, row])).rows
    state = within_budget(MATCHER, 6)
    after = state.advance(state.start(), first.token)
    for answer, sequence in zip(answers, (10, 20), strict=True):
        draw = Mask().draw(row, state, after, Stream(1, sequence, 1))
        assert (answer.token, answer.log_weight) == (draw.token, draw.log_weight)
        assert answer.total_log_weight == first.log_weight + draw.log_weight


def test_masks_and_logits_offer_what_the_matcher_allows_and_weigh_it_exactly() -> None:
    matcher = within_budget(MATCHER, 6)
    for answer in ("mask", "logits"):
        g = group(answer, law=Law(temperature=1.3))
        state, tokens, total, token = matcher.start(), [], 0.0, None
        for _ in range(5):
            logits = logits_of(*tokens)
            answered = g.step([RowOf(1, token)], logits[None])
            (row,) = answered.rows
            if row.status != "running":
                break
            allowed = np.zeros(ROW, bool)
            allowed[: len(VOCABULARY)] = matcher.allows(state, range(len(VOCABULARY)))
            p = np.exp(logits.astype(np.float64) / 1.3)
            assert row.token == -1
            assert row.log_weight == pytest.approx(math.log(p[allowed].sum() / p.sum()), abs=1e-6)
            total += row.log_weight
            assert row.total_log_weight == total
            assert answered.offered is not None
            if answer == "mask":
                assert answered.offered.dtype == np.uint32
                np.testing.assert_array_equal(unpack_mask(answered.offered[0], ROW), allowed)
            else:
                np.testing.assert_array_equal(
                    answered.offered[0], np.where(allowed, logits, -np.inf)
                )
            token = int(np.flatnonzero(allowed)[0])
            tokens.append(token)
            state = matcher.advance(state, token)
        assert tokens


def test_a_mask_needs_no_logits_and_its_weight_is_then_not_known() -> None:
    answered = group("mask").step([RowOf(1)], None)
    (row,) = answered.rows
    assert math.isnan(row.log_weight) and math.isnan(row.total_log_weight)
    assert row.status == "running" and answered.offered is not None and answered.offered.any()


@pytest.mark.parametrize("truncation", ["target", "after_mask"])
def test_logits_leave_out_what_truncation_takes(truncation: Any) -> None:
    law = Law(top_k=2, truncation=truncation)
    logits = logits_of()
    answered = group("logits", law=law).step([RowOf(1)], logits[None])
    assert answered.offered is not None
    kept = np.flatnonzero(np.isfinite(answered.offered[0]))
    allowed = np.flatnonzero(MATCHER.allows(MATCHER.start(), range(len(VOCABULARY))))
    ranked = (
        np.argsort(-logits) if truncation == "target" else allowed[np.argsort(-logits[allowed])]
    )
    assert set(kept) == set(ranked[:2]) & set(allowed)
    read = law.read(logits, None)
    expected = sum(math.exp(read.log_p(int(token))) for token in kept)
    if truncation == "target":
        assert math.exp(answered.rows[0].log_weight) == pytest.approx(expected, rel=1e-6)


def test_an_engine_that_draws_what_is_not_allowed_loses_the_sequence_alone() -> None:
    g = group("mask")
    g.step([RowOf(1), RowOf(2), RowOf(3)], None)
    answered = g.step([RowOf(1, token=0), RowOf(2, token=EOS), RowOf(3, token=10**6)], None)
    assert [row.status for row in answered.rows] == ["running", "dead", "dead"]
    assert [row.total_log_weight for row in answered.rows][1:] == [-math.inf, -math.inf]
    assert "refused" in answered.rows[1].reason
    assert answered.offered is not None
    assert answered.offered[0].any() and not answered.offered[1:].any()
    again = g.step([RowOf(2), RowOf(1, token=1)], None)  # it stays dead; the other goes on
    assert [row.status for row in again.rows] == ["dead", "running"]


def test_any_end_of_sequence_finishes_and_offers_nothing_more() -> None:
    for eos in (5, 6):
        g = group("logits")
        g.step([RowOf(1)], logits_of()[None])
        g.step([RowOf(1, token=2)], logits_of(2)[None])
        answered = g.step([RowOf(1, token=eos)], logits_of(2, eos)[None])
        assert answered.rows[0].status == "finished"
        assert answered.rows[0].total_log_weight > -math.inf
        assert answered.offered is not None and not np.isfinite(answered.offered).any()


def test_nan_and_infinite_logits_end_their_own_row() -> None:
    for bad in (np.nan, np.inf):
        for answer in ("token", "mask", "logits"):
            logits = np.stack([logits_of(), logits_of()])
            logits[0, 4] = bad
            answered = group(answer).step([RowOf(1), RowOf(2, sequence=1)], logits)
            first, second = answered.rows
            assert (first.status, first.token, first.log_weight) == ("dead", -1, -math.inf)
            assert "NaN" in first.reason
            assert second.status in ("running", "finished")
            if answered.offered is not None:
                offered = answered.offered[0]
                assert not (offered if answer == "mask" else np.isfinite(offered)).any()


def test_a_constraint_that_raises_is_a_status_of_its_row() -> None:
    def prefix(text: bytes) -> bool:
        if text.startswith(b"b"):
            raise RuntimeError("broken")
        return True

    matcher = Predicate(prefix=prefix, complete=lambda text: True).compile(VOCABULARY)
    g = group("token", matcher=matcher, sampler=AWRS(rejects=64))
    logits = np.full((2, ROW), -20.0, np.float32)
    logits[0, 0] = logits[1, 1] = 20.0
    first, second = g.step([RowOf(1), RowOf(2)], logits).rows
    assert first.status == "running"
    assert second.status == "dead" and "broken" in second.reason and second.token == -1


def test_no_sequence_outlives_its_limit() -> None:
    matcher = Predicate(prefix=lambda text: True, complete=lambda text: False).compile(VOCABULARY)
    g = group("token", matcher=matcher, sampler=AWRS(rejects=64), max_new_tokens=3)
    statuses = [g.step([RowOf(1)], logits_of()[None]).rows[0].status for _ in range(4)]
    assert statuses == ["running", "running", "length", "length"]
    # A matcher that knows how far the end is takes no path that cannot be finished.
    for sequence in range(20):
        g = group("token", sampler=Mask(), max_new_tokens=3)
        tokens: list[int] = []
        status = "running"
        while status == "running":
            (row,) = g.step([RowOf(1, sequence=sequence)], logits_of(*tokens)[None]).rows
            tokens.append(row.token)
            status = row.status
        assert status == "finished" and len(tokens) <= 3


BAD_STEPS: dict[str, tuple[str, Callable[[SequenceGroup], Any]]] = {
    "no rows": ("step.rows", lambda g: g.step([], np.zeros((0, ROW), np.float32))),
    "twice": ("step.rows", lambda g: g.step([RowOf(1), RowOf(1)], np.zeros((2, ROW), np.float32))),
    "no logits": ("step.logits", lambda g: g.step([RowOf(1)], None)),
    "rows": ("step.logits.shape", lambda g: g.step([RowOf(1)], np.zeros((2, ROW), np.float32))),
    "width": ("step.logits.shape", lambda g: g.step([RowOf(1)], np.zeros((1, 7), np.float32))),
    "flat": ("step.logits.shape", lambda g: g.step([RowOf(1)], np.zeros(ROW, np.float32))),
    "token of a new one": (
        "step.rows[0].token",
        lambda g: g.step([RowOf(9, token=1)], logits_of()[None]),
    ),
    "token of ours": (
        "step.rows[0].token",
        lambda g: g.step([RowOf(1, token=1)], logits_of()[None]),
    ),
    "number": (
        "step.rows[0].sequence",
        lambda g: g.step([RowOf(9, sequence=1 << 32)], logits_of()[None]),
    ),
    "one too many": ("step.rows[0]", lambda g: g.step([RowOf(5)], logits_of()[None])),
    "fork of none": ("fork.parent", lambda g: g.fork(9, 10, 0)),
    "fork onto one": ("fork.to", lambda g: g.fork(1, 2, 0)),
    "fork too many": ("fork", lambda g: g.fork(1, 10, 0)),
    "close none": ("close.id", lambda g: g.close(9)),
}


@pytest.mark.parametrize("case", BAD_STEPS)
def test_a_step_that_cannot_be_names_its_field(case: str) -> None:
    g = group("token", sampler=Mask(), most=2, matcher=Regex("[ab]*").compile(VOCABULARY))
    logits = np.full((2, ROW), -30.0, np.float32)
    logits[:, 0] = 0.0
    answered = g.step([RowOf(1), RowOf(2)], logits)
    assert [row.status for row in answered.rows] == ["running", "running"]
    field, act = BAD_STEPS[case]
    if case in ("token of a new one", "number", "one too many"):
        g.close(2)
    if case == "one too many":
        g.fork(1, 3, 0)
    with pytest.raises(InputError) as raised:
        act(g)
    assert raised.value.argument == field


def test_the_token_that_an_engine_owes_is_asked_for() -> None:
    g = group("mask")
    g.step([RowOf(1)], None)
    with pytest.raises(InputError) as raised:
        g.step([RowOf(1)], None)
    assert raised.value.argument == "step.rows[0].token"


def test_answers_that_can_never_be_given_are_refused_at_once() -> None:
    black_box = Predicate(prefix=lambda text: True, complete=lambda text: True)
    for answer, sampler, law, matcher, field in (
        ("mask", Auto(), PLAIN, black_box.compile(VOCABULARY), "answer"),
        ("logits", AWRS(rejects=9), PLAIN, MATCHER, "strategy.sampler"),
        ("mask", Auto(), Law(top_k=2, truncation="target"), MATCHER, "answer"),
    ):
        with pytest.raises(StrategyError) as raised:
            group(answer, sampler=sampler, law=law, matcher=matcher)
        assert raised.value.argument == field


class TableRows:
    """Rows of a model that is `logits_of`."""

    def __init__(self, texts: list[tuple[int, ...]]) -> None:
        self.texts = texts
        self.logits = np.stack([logits_of(*tokens) for tokens in texts])

    def advance(self, parents: Any, tokens: Any) -> TableRows:
        grown = zip(parents, tokens, strict=True)
        return TableRows([(*self.texts[parent], token) for parent, token in grown])


@pytest.mark.parametrize("particles", [1, 8])
def test_particles_are_those_of_run(particles: int) -> None:
    options: Any = {"particles": particles, "max_new_tokens": 6, "seed": 5, "sampler": Mask()}
    expected = run(TableRows([()]), MATCHER, sequence=77, ess_threshold=1.0, **options)
    group_ = ParticleGroup(SMC(MATCHER, sequence=77, ess_threshold=1.0, **options), ROW)
    rows, resampled = TableRows([()]), []
    while not group_.over:
        grown = group_.step(rows.logits)
        if grown.resampled is not None:
            resampled.append(grown.resampled)
        if grown.parents:
            rows = rows.advance(grown.parents, grown.tokens)
    got = group_.result()
    assert [p.token_ids for p in got.particles] == [p.token_ids for p in expected.particles]
    assert [p.log_weight for p in got.particles] == [p.log_weight for p in expected.particles]
    assert (got.ancestry, got.ess) == (expected.ancestry, expected.ess)
    assert got.log_evidence == expected.log_evidence
    assert [r.ancestors for r in resampled] == [
        a for a in expected.ancestry if a != tuple(range(particles))
    ]
    assert bool(resampled) == (particles > 1)
    for event in resampled:
        assert event.ancestors == expected.ancestry[event.position - 1]
        assert event.ess == expected.ess[event.position - 1]


def test_particles_check_their_rows_and_end_once() -> None:
    options: Any = {"particles": 4, "max_new_tokens": 6, "seed": 5}
    group_ = ParticleGroup(SMC(MATCHER, **options), ROW)
    for bad in (None, np.zeros((2, ROW), np.float32), np.zeros((1, ROW + 1), np.float32)):
        with pytest.raises(InputError) as raised:
            group_.step(bad)
        assert raised.value.argument.startswith("step.logits")
    group_.step(logits_of()[None])
    assert {p.status for p in group_.result().particles} <= {"cancelled", "finished"}
    with pytest.raises(InputError, match="over"):
        group_.step(logits_of()[None])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_an_engine_does_no_token_breaks_the_constraint(data: st.DataObject) -> None:
    """Rows with NaN, infinities and nothing at all; sequences that come, fork, leave and return."""
    constraint = data.draw(st.sampled_from(["(ab|ba)+", "a{2,4}b?", "(aab|b)*a"]))
    matcher = Regex(constraint).compile(VOCABULARY)
    sampler = data.draw(st.sampled_from([Mask(), AWRS(rejects=8), Auto()]))
    g = group(matcher=matcher, sampler=sampler, max_new_tokens=8, most=4)
    states: dict[int, Any] = {}
    ended: set[int] = set()
    special = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 80.0, -80.0])
    rows = st.lists(special | st.floats(-9, 9), min_size=ROW, max_size=ROW)
    for _ in range(data.draw(st.integers(1, 12))):
        act = data.draw(st.sampled_from(["step", "step", "step", "fork", "close"]))
        ids = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
        one, other = ids[0], data.draw(st.integers(0, 3))
        if act == "fork" and one in states and other not in states:
            g.fork(one, other, other)
            states[other] = states[one]
            ended |= {other} if one in ended else set()
        elif act == "close" and one in states:
            g.close(one)
            del states[one]
            ended.discard(one)
        elif act == "step":
            logits = np.array([data.draw(rows) for _ in ids], np.float32)
            for id, row in zip(ids, g.step([RowOf(id) for id in ids], logits).rows, strict=True):
                state = states.setdefault(id, matcher.start())
                if row.token >= 0:
                    assert id not in ended
                    states[id] = matcher.advance(state, row.token)
                    assert states[id] is not None
                if row.status != "running":
                    ended.add(id)
                    assert row.token in (-1, EOS) or row.status == "length"
                assert not math.isnan(row.total_log_weight)
