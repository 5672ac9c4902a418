"""Trees: output laws by enumeration of drafted trees and choices, statistics, and planted bugs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from midstream.kernels import verify_tree as module
from midstream.kernels.masked_sampling import draw_without_replacement
from midstream.kernels.verify_rows import DraftRow
from midstream.kernels.verify_tree import decide_tree, verify_tree

TOLERANCE = 1e-12
Prefix = tuple[int, ...]
Tree = tuple[float, tuple[int, ...]]

FLAT = (-1, -1)
WIDE = (-1, -1, -1)
DEEP = (-1, -1, 0, 0, 1)
"""Two children of the root, two of the first and one of the second."""
LAYERED = (-1, 0, -1, 0, 2)
"""The same kind of tree with siblings apart from each other."""


def path_of(node: int, parents: Sequence[int], tokens: Sequence[int]) -> Prefix:
    """The tokens from the root to a node."""
    path: Prefix = ()
    while node >= 0:
        path = (tokens[node], *path)
        node = parents[node]
    return path


def drawn(world: Any, parents: Sequence[int], *, replace: bool = False) -> Iterator[Tree]:
    """Every tree whose children were drawn from q in order of index, with its probability."""

    def grow(tokens: tuple[int, ...], share: float) -> Iterator[Tree]:
        node = len(tokens)
        if node == len(parents):
            yield share, tokens
            return
        law = world.q(path_of(parents[node], parents, tokens))
        if not replace:
            law[
                [t for t, parent in zip(tokens, parents, strict=False) if parent == parents[node]]
            ] = 0
            law = law / law.sum()
        for token in np.flatnonzero(law):
            yield from grow((*tokens, int(token)), share * law[token])

    return grow((), 1.0)


def ranked(world: Any, parents: Sequence[int]) -> Iterator[Tree]:
    """The one tree of a deterministic drafter: each node's most probable tokens in turn."""
    tokens: tuple[int, ...] = ()
    for node, parent in enumerate(parents):
        order = np.argsort(-world.q(path_of(parent, parents, tokens)))
        rank = sum(p == parent for p in parents[:node])
        tokens = (*tokens, int(order[rank]))
    yield 1.0, tokens


def outcome(
    exact: Any,
    world: Any,
    parents: Sequence[int],
    method: Any,
    *,
    trees: Callable[[Any, Sequence[int]], Iterator[Tree]] = drawn,
    point: bool = False,
) -> tuple[dict[Prefix, float], float]:
    """The joint law of the first tokens, as many as the tree is deep and one more, when the rest
    comes from p; and the mean number of tokens kept.
    """
    depth = 1 + max(len(path_of(n, parents, [0] * len(parents))) for n in range(len(parents)))
    texts: dict[Prefix, float] = {}
    kept = 0.0
    for share, tokens in trees(world, parents):
        known = [max(token, 0) for token in tokens]  # a dropped node's rows are never read
        prefixes = [(), *(path_of(n, parents, known) for n in range(len(tokens)))]
        target = [world.target(prefix) for prefix in prefixes]
        draft = [DraftRow(None, 1.0) if point else world.draft(prefix) for prefix in prefixes]
        for p, choice in exact.runs(
            lambda chance, t=target, d=draft, x=tokens: decide_tree(
                t.__getitem__, d.__getitem__, x, parents, method, chance
            )
        ):
            text = (*(tokens[n] for n in choice.path), choice.token)
            texts[text] = texts.get(text, 0.0) + share * p
            kept += share * p * len(choice.path)
    return world.continued(texts, depth), kept


def deviation(exact: Any, world: Any, parents: Sequence[int], method: Any, **options: Any) -> float:
    law, _ = outcome(exact, world, parents, method, **options)
    depth = len(next(iter(law)))
    return float(exact.distance(law, world.joint(depth)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("size", "parents"), [(6, FLAT), (5, WIDE), (3, DEEP), (3, LAYERED)], ids=str
)
def test_joint_law_without_replacement(
    verification: Any, masked: bool, size: int, parents: tuple[int, ...]
) -> None:
    for seed in range(3):
        world = verification.world(size, seed, masked=masked)
        assert deviation(verification, world, parents, "rrs") <= TOLERANCE


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("size", "parents"), [(5, FLAT), (4, WIDE), (3, LAYERED)], ids=str)
def test_joint_law_with_replacement(
    verification: Any, masked: bool, size: int, parents: tuple[int, ...]
) -> None:
    def replaced(world: Any, parents: Sequence[int]) -> Iterator[Tree]:
        return drawn(world, parents, replace=True)

    for seed in range(2):
        world = verification.world(size, seed, masked=masked)
        method = "rrs_with_replacement"
        assert deviation(verification, world, parents, method, trees=replaced) <= TOLERANCE


@pytest.mark.parametrize("method", ["rrs", "rrs_with_replacement", "target_walk"])
@pytest.mark.parametrize("masked", [False, True])
def test_deterministic_trees(verification: Any, masked: bool, method: Any) -> None:
    for seed, parents in itertools.product(range(6), (WIDE, DEEP, LAYERED)):
        world = verification.world(4, seed, masked=masked)
        law = {"trees": ranked, "point": True}
        assert deviation(verification, world, parents, method, **law) <= TOLERANCE
    kept = {
        name: outcome(verification, world, WIDE, name, trees=ranked, point=True)[1]
        for name in ("rrs", "target_walk")
    }
    assert kept["rrs"] == pytest.approx(kept["target_walk"], abs=TOLERANCE)
    children = np.argsort(-world.q(()))[:3]
    assert kept["rrs"] == pytest.approx(world.p(())[children].sum(), abs=TOLERANCE)


def test_the_target_walk_is_exact_for_sampled_trees_too(verification: Any) -> None:
    for seed in range(3):
        world = verification.world(3, seed, masked=True)
        assert deviation(verification, world, LAYERED, "target_walk") <= TOLERANCE


@pytest.mark.parametrize(("temperature", "draft_temperature"), [(0.4, 1.7), (2.0, 0.6), (0.0, 1.0)])
def test_temperatures(verification: Any, temperature: float, draft_temperature: float) -> None:
    for seed in range(3):
        world = verification.world(
            3, seed, masked=True, temperature=temperature, draft_temperature=draft_temperature
        )
        assert deviation(verification, world, DEEP, "rrs") <= TOLERANCE


def test_a_sharp_draft_leaves_its_siblings_next_to_nothing(verification: Any) -> None:
    """Later siblings come from what is left of q, however little: 1e-40 and less."""
    for draft_temperature in (0.05, 0.005):
        for seed in range(3):
            world = verification.world(4, seed, draft_temperature=draft_temperature)
            assert deviation(verification, world, WIDE, "rrs") <= TOLERANCE


class Refuses:
    def __init__(self) -> None:
        self.weights = np.empty(0)

    def keeps(self, draft: int, probability: float) -> bool:
        return probability == 1.0

    def draw(self, row: Any, step: int) -> int:
        raise AssertionError("a child was rejected")

    def choose(self, weights: np.ndarray) -> int:
        self.weights = weights / weights.sum()
        return 0


def test_the_textbook_recursion(verification: Any) -> None:
    """R = norm([R - D]+) and D = norm(D without y), step by step, for five siblings."""

    compared = 0
    for seed in range(60):
        world = verification.world(6, seed, sharpness=(0.5, 0.5), masked=seed % 2 == 0)
        rest, law = world.p(()), world.q(())
        tokens = np.random.default_rng(seed).choice(6, size=5, replace=False, p=law).tolist()
        expected = []
        for token in tokens:
            expected.append(min(1.0, rest[token] / law[token]))
            if expected[-1] == 1.0:
                break
            rest = np.maximum(rest - law, 0.0)
            rest /= rest.sum()
            law[token] = 0.0
            law /= law.sum()
        else:
            chance = Refuses()
            target = {0: world.target(())}
            draft = {0: world.draft(())}
            choice = decide_tree(
                target.__getitem__, draft.__getitem__, tokens, (-1,) * 5, "rrs", chance
            )
            assert [choice.tests[n] for n in range(5)] == pytest.approx(expected, abs=1e-12)
            np.testing.assert_allclose(chance.weights, rest, atol=1e-12)
            compared += 1
    assert compared > 10


def test_more_siblings_keep_more(verification: Any) -> None:
    """And without replacement more than with."""
    worlds = [verification.world(6, seed, sharpness=(0.7, 0.7)) for seed in range(25)]

    def kept(parents: tuple[int, ...], replace: bool) -> float:
        method = "rrs_with_replacement" if replace else "rrs"
        return float(
            np.mean(
                [
                    outcome(
                        verification,
                        world,
                        parents,
                        method,
                        trees=lambda w, p: drawn(w, p, replace=replace),
                    )[1]
                    for world in worlds
                ]
            )
        )

    assert kept((-1,), False) < kept(FLAT, True) < kept(FLAT, False)


@pytest.mark.parametrize("method", ["rrs", "target_walk"])
def test_a_dead_row_ends_the_text_with_its_own_probability(verification: Any, method: Any) -> None:
    world = verification.world(3, 1)
    dead = verification.dead_row(3)
    mass: dict[Prefix, float] = {}
    for share, tokens in drawn(world, LAYERED):
        prefixes = [(), *(path_of(n, LAYERED, tokens) for n in range(5))]
        target = [dead if prefix[:1] == (0,) else world.target(prefix) for prefix in prefixes]
        draft = [world.draft(prefix) for prefix in prefixes]
        for p, choice in verification.runs(
            lambda chance, t=target, d=draft, x=tokens: decide_tree(
                t.__getitem__, d.__getitem__, x, LAYERED, method, chance
            )
        ):
            text = (*(tokens[n] for n in choice.path), choice.token)
            text = (0, -1) if text == (0,) else text
            mass[text] = mass.get(text, 0.0) + share * p
    assert mass.pop((0, -1)) == pytest.approx(world.p(())[0], abs=TOLERANCE)
    assert not any(text[0] == 0 for text in mass)
    joint = {text: p for text, p in world.joint(3).items() if text[0] != 0}
    assert verification.distance(world.continued(mass, 3), joint) <= TOLERANCE


# Planted bugs. Each must fail what the tests above pass.


def fails(exact: Any, parents: Sequence[int], method: Any = "rrs", **options: Any) -> bool:
    worlds = [exact.world(4, seed, sharpness=(0.7, 0.7)) for seed in range(6)]
    return max(deviation(exact, world, parents, method, **options) for world in worlds) > 1e-3


def test_siblings_without_renormalising_q_fail(verification: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "mass_without", lambda law, tokens: 1.0)
    assert fails(verification, FLAT)


@pytest.mark.parametrize("rank", ["q", "id"])
def test_siblings_in_another_order_than_drawn_fail(verification: Any, rank: str) -> None:
    def reordered(world: Any, parents: Sequence[int]) -> Iterator[Tree]:
        q = world.q(())
        for share, tokens in drawn(world, parents):
            yield share, tuple(sorted(tokens, key=lambda t: -q[t] if rank == "q" else t))

    assert fails(verification, FLAT, trees=reordered)


def test_dropping_drawn_siblings_by_their_value_fails(verification: Any) -> None:
    def pruned(world: Any, parents: Sequence[int]) -> Iterator[Tree]:
        q = world.q(())
        for share, tokens in drawn(world, parents):
            yield share, tuple(t if q[t] >= 0.25 else -1 for t in tokens)

    assert fails(verification, FLAT, trees=pruned)


def test_siblings_drawn_with_replacement_and_verified_without_fail(verification: Any) -> None:
    def replaced(world: Any, parents: Sequence[int]) -> Iterator[Tree]:
        return drawn(world, parents, replace=True)

    assert fails(verification, FLAT, trees=replaced)
    assert fails(verification, FLAT, "rrs_with_replacement")


def test_the_most_probable_children_verified_with_soft_q_fail(verification: Any) -> None:
    assert fails(verification, FLAT, trees=ranked)


def test_always_accept_fails(verification: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "sibling_acceptance", lambda *_: 1.0)
    assert fails(verification, FLAT)


def test_a_rest_that_is_the_target_fails(verification: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "excess", lambda p, q: p)
    assert fails(verification, FLAT)
    assert fails(verification, FLAT, trees=ranked, point=True)


# Through the public function, with uniforms.


def sibling_batch(world: Any, rows: int, seed: int) -> dict[str, Any]:
    """Trees of three children of the root, drawn without replacement by uniforms."""
    rng = np.random.default_rng(seed)
    q = np.broadcast_to(world.draft_logits(()), (rows, world.size))
    tokens = draw_without_replacement(q, None, rng.random((rows, 3, 2))).token
    shape = (rows, 4, world.size)
    return {
        "target_logits": np.broadcast_to(world.target_logits(()), shape),
        "tokens": tokens,
        "parents": np.full((rows, 3), -1),
        "draft_logits": np.broadcast_to(world.draft_logits(()), shape),
        "noise": rng.random((rows, 4, 2)),
    }


def first_tokens(verdict: Any, tokens: np.ndarray) -> np.ndarray:
    first = verdict.path[:, 0]
    kept = np.take_along_axis(tokens, np.maximum(first, 0)[:, None], axis=1)[:, 0]
    result: np.ndarray = np.where(first >= 0, kept, verdict.token)
    return result


@pytest.mark.parametrize(("size", "rows"), [(16, 4_000), (4096, 1_000)])
def test_draws_follow_the_target_law(verification: Any, size: int, rows: int) -> None:
    world = verification.world(size, 5, sharpness=(0.5, 0.5))
    arguments = sibling_batch(world, rows, 1)
    tokens = first_tokens(verify_tree(**arguments), arguments["tokens"])
    assert not verification.chi_square_fails(tokens, world.p(()))
    walk = {**arguments, "draft_logits": None, "method": "target_walk"}
    tokens = first_tokens(verify_tree(**walk), arguments["tokens"])
    assert not verification.chi_square_fails(tokens, world.p(()))


def test_planted_bugs_fail_the_statistics(verification: Any, monkeypatch: Any) -> None:
    world = verification.world(6, 2, sharpness=(0.7, 0.7))
    arguments = sibling_batch(world, 3_000, 1)
    tokens = first_tokens(verify_tree(**arguments), arguments["tokens"])
    assert not verification.chi_square_fails(tokens, world.p(()))
    other = {**arguments, "tokens": np.sort(arguments["tokens"], axis=1)}
    tokens = first_tokens(verify_tree(**other), other["tokens"])
    assert verification.chi_square_fails(tokens, world.p(()))
    monkeypatch.setattr(module, "mass_without", lambda law, tokens: 1.0)
    tokens = first_tokens(verify_tree(**arguments), arguments["tokens"])
    assert verification.chi_square_fails(tokens, world.p(()))
