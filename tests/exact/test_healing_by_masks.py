"""The locally masked law of healing, weighted, by enumeration of every random choice."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from midstream.middleware.bytes.beyond import AnyIds
from midstream.middleware.bytes.spelling import SpellsFirst, spells_first
from midstream.middleware.constraints import Choice
from midstream.middleware.estimators import Schedule
from midstream.middleware.random import Stream
from midstream.middleware.sampling import AWRS, Mask
from midstream.middleware.vocabulary import Vocabulary

VOCABULARY = Vocabulary([b"a", b"b", b"ab", b"abb", b"bc", b"c", b""], eos_ids=[6])
STEPS = 3


def table(prefix: tuple[int, ...]) -> np.ndarray:
    """A law of the next token that depends on all before it."""
    uniforms = Stream(7, position=len(prefix), sequence=hash(prefix) & 0xFFFF).uniforms("token", 7)
    p = uniforms + 0.05
    return p / p.sum()


def logits(prefix: tuple[int, ...]) -> np.ndarray:
    return np.log(table(prefix))


def target(matcher: Any) -> dict[tuple[int, ...], float]:
    """p of each token string of STEPS tokens, or fewer with an end, that the matcher takes."""
    found: dict[tuple[int, ...], float] = {}

    def grow(ids: tuple[int, ...], state: Any, p: float) -> None:
        if len(ids) == STEPS or (ids and ids[-1] == 6):
            found[ids] = p
            return
        for token in range(7):
            child = matcher.advance(state, token)
            if child is not None:
                grow((*ids, token), child, p * table(ids)[token])

    grow((), matcher.start(), 1.0)
    return found


def weighted(exact: Any, sampler: Any, matcher: Any, weigh: Any = None) -> dict[Any, float]:
    """E[w 1{tokens = t}] of what the sampler draws."""

    def run(source: Any) -> tuple[tuple[int, ...], float]:
        ids: tuple[int, ...] = ()
        state, log_weight = matcher.start(), 0.0
        for _ in range(STEPS):
            draw = sampler.prepare(logits(ids), matcher, state)(source)
            log_weight += draw.log_weight if weigh is None else weigh(draw, len(ids))
            if draw.token < 0:
                return ids, -math.inf
            ids, state = (*ids, draw.token), matcher.advance(state, draw.token)
            if draw.status == "finished":
                break
        return ids, log_weight

    sums: dict[tuple[int, ...], float] = {}
    total = 0.0
    for probability, (ids, log_weight) in exact.runs(run):
        total += probability
        if log_weight > -math.inf:
            sums[ids] = sums.get(ids, 0.0) + probability * math.exp(log_weight)
    assert abs(total - 1) < 1e-9
    return sums


def deviation(sums: dict[Any, float], law: dict[Any, float]) -> float:
    assert set(sums) <= set(law)
    return max(abs(sums.get(ids, 0.0) / p - 1) for ids, p in law.items())


def matchers() -> dict[str, Any]:
    after = Choice(["c", "cab", "b", "bca"]).compile(VOCABULARY)
    return {
        "free": SpellsFirst(b"ab", AnyIds(VOCABULARY)),
        "long": SpellsFirst(b"abba", AnyIds(VOCABULARY)),
        "constrained": spells_first(b"ab", after),
        "nothing cut": spells_first(b"", after),
    }


@pytest.mark.parametrize("name", matchers())
def test_weights_are_proper_for_strings_that_spell_the_tail(exact: Any, name: str) -> None:
    matcher = matchers()[name]
    law = target(matcher)
    assert len(law) >= 3
    assert deviation(weighted(exact, Mask(), matcher), law) <= 1e-9


def test_rejection_has_the_same_target(exact: Any) -> None:
    """Of the first token alone, so that the runs can be listed."""
    matcher = SpellsFirst(b"ab", Choice(["c"]).compile(VOCABULARY))
    sampler = AWRS(accepts=2, schedule=Schedule(rounds=(1,), fold_above=0.0))
    step = sampler.prepare(logits(()), matcher, matcher.start())
    sums, total = exact.totals(exact.runs(step), 7)
    allowed = matcher.allows(matcher.start(), range(7))
    assert abs(total - 1) < 1e-9 and allowed.tolist() == [True, False, True] + [False] * 4
    assert np.allclose(sums, table(()) * allowed, rtol=1e-9, atol=0)


def test_the_target_is_every_string_that_spells_the_tail() -> None:
    """Against a listing that knows nothing of matchers."""
    for tail in (b"ab", b"abba"):
        law = target(SpellsFirst(tail, AnyIds(VOCABULARY)))
        for ids in itertools.product(range(7), repeat=STEPS):
            spelt = VOCABULARY.decode(ids)
            agrees = tail.startswith(spelt) or spelt.startswith(tail)
            ended = 6 in ids and len(VOCABULARY.decode(ids[: ids.index(6)])) < len(tail)
            if 6 not in ids[:-1]:
                assert (ids in law) == (agrees and not ended), ids


def unweighted(draw: Any, position: int) -> float:
    return 0.0


def without_the_first(draw: Any, position: int) -> float:
    return 0.0 if position == 0 else float(draw.log_weight)


@pytest.mark.parametrize("weigh", [unweighted, without_the_first])
def test_a_missing_weight_fails_the_check(exact: Any, weigh: Any) -> None:
    matcher = matchers()["free"]
    assert deviation(weighted(exact, Mask(), matcher, weigh), target(matcher)) > 1e-2


def test_healing_by_one_token_fails_the_check(exact: Any) -> None:
    """Only the last id taken back: strings of the tail's other tokens have no mass."""
    matcher = matchers()["free"]
    one_back = SpellsFirst(b"b", AnyIds(VOCABULARY))

    def run(source: Any) -> Any:
        draw = Mask().prepare(logits((0,)), one_back, one_back.start())(source)
        return (0, draw.token), draw.log_weight + math.log(table(())[0])

    sums: dict[Any, float] = {}
    for probability, (ids, log_weight) in exact.runs(run):
        sums[ids] = sums.get(ids, 0.0) + probability * math.exp(log_weight)
    begins: dict[Any, float] = {}
    for ids, p in target(matcher).items():
        begins[ids[:2]] = begins.get(ids[:2], 0.0) + p
    with pytest.raises(AssertionError):
        assert deviation(sums, begins) < 1e-2
