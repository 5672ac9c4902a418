"""Chains: output laws by enumeration of drafts and choices, statistics, and planted bugs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from midstream.kernels import verify_chain as module
from midstream.kernels.verify_chain import decide_chain, verify_chain
from midstream.kernels.verify_rows import DraftRow, TargetRow

TOLERANCE = 1e-12
METHODS = ["token", "block"]
Drafts = Callable[[Any, int], list[tuple[float, tuple[int, ...]]]]


def sampled(world: Any, length: int) -> list[tuple[float, tuple[int, ...]]]:
    """Every draft drawn from q, with its probability."""
    drafts = []
    for tokens in itertools.product(range(world.size), repeat=length):
        share = float(np.prod([world.q(tokens[:i])[t] for i, t in enumerate(tokens)]))
        drafts.append((share, tokens))
    return drafts


def most_probable(world: Any, length: int) -> list[tuple[float, tuple[int, ...]]]:
    """The one draft of a greedy drafter."""
    tokens: tuple[int, ...] = ()
    for _ in range(length):
        tokens = (*tokens, int(world.q(tokens).argmax()))
    return [(1.0, tokens)]


def outcome(
    exact: Any,
    world: Any,
    length: int,
    method: Any,
    *,
    drafts: Drafts = sampled,
    draft_row: Callable[[Any, tuple[int, ...]], DraftRow] | None = None,
    decide: Any = decide_chain,
) -> tuple[dict[tuple[int, ...], float], float]:
    """The joint law of the first `length` + 1 tokens when the rest comes from p, and the mean
    number of tokens kept.
    """
    texts: dict[tuple[int, ...], float] = {}
    kept = 0.0
    for share, tokens in drafts(world, length):
        target = [world.target(tokens[:i]) for i in range(length + 1)]
        law = draft_row or (lambda world, prefix: world.draft(prefix))
        draft = [law(world, tokens[:i]) for i in range(length)]
        for p, (accepted, token, _) in exact.runs(
            lambda chance, t=target, d=draft, x=tokens: decide(t, d, x, method, chance)
        ):
            text = (*tokens[:accepted], token)
            texts[text] = texts.get(text, 0.0) + share * p
            kept += share * p * accepted
    return world.continued(texts, length + 1), kept


def deviation(exact: Any, world: Any, length: int, method: Any, **options: Any) -> float:
    law, _ = outcome(exact, world, length, method, **options)
    return float(exact.distance(law, world.joint(length + 1)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("size", "length"), [(6, 1), (5, 2), (3, 3)])
def test_joint_law(verification: Any, method: Any, masked: bool, size: int, length: int) -> None:
    for seed in range(5):
        world = verification.world(size, seed, masked=masked)
        assert deviation(verification, world, length, method) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sharpness", [(0.2, 2.0), (2.0, 0.2), (3.0, 3.0)], ids=str)
def test_joint_law_of_flat_and_sharp_laws(
    verification: Any, method: Any, sharpness: tuple[float, float]
) -> None:
    for seed in range(5):
        world = verification.world(4, seed, sharpness=sharpness, masked=seed % 2 == 1)
        assert deviation(verification, world, 2, method) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("temperature", "draft_temperature"), [(0.4, 1.7), (2.0, 0.6), (0.0, 1.0)])
def test_temperatures(
    verification: Any, method: Any, temperature: float, draft_temperature: float
) -> None:
    for seed in range(4):
        world = verification.world(
            4, seed, masked=True, temperature=temperature, draft_temperature=draft_temperature
        )
        assert deviation(verification, world, 2, method) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("masked", [False, True])
def test_deterministic_drafts(verification: Any, method: Any, masked: bool) -> None:
    for draft_row in (DraftRow(None, 1.0), DraftRow(np.zeros(4), 0.0)):
        for seed in range(4):
            world = verification.world(4, seed, masked=masked)
            law = {"drafts": most_probable, "draft_row": lambda world, prefix, d=draft_row: d}
            assert deviation(verification, world, 3, method, **law) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_chains_that_end_early(verification: Any, method: Any) -> None:
    """Where the text before says so, there is no draft, or its row of logits is broken."""

    def ends(prefix: tuple[int, ...]) -> bool:
        return len(prefix) > 0 and prefix[-1] % 2 == 0

    def stopped(target: Any, draft: Any, tokens: Any, method: Any, chance: Any) -> Any:
        tokens = [-1 if ends(tokens[:i]) else t for i, t in enumerate(tokens)]
        return decide_chain(target, draft, tokens, method, chance)

    def broken(world: Any, prefix: tuple[int, ...]) -> DraftRow:
        return DraftRow(np.full(4, np.nan), 1.0) if ends(prefix) else world.draft(prefix)

    for seed in range(3):
        world = verification.world(4, seed, masked=True)
        assert deviation(verification, world, 3, method, decide=stopped) <= TOLERANCE
        assert deviation(verification, world, 3, method, draft_row=broken) <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_row_ends_the_text_with_its_own_probability(verification: Any, method: Any) -> None:
    """After token 0 nothing is allowed: Pr(the text is 0 and dead) = p(0), whatever was drafted."""
    for seed in range(5):
        world = verification.world(3, seed)
        dead = verification.dead_row(3)
        mass: dict[tuple[int, ...], float] = {}
        for share, tokens in sampled(world, 2):
            target = [world.target(tokens[:i]) for i in range(3)]
            if tokens[0] == 0:
                target[1] = dead
            draft = [world.draft(tokens[:i]) for i in range(2)]
            for p, (accepted, token, _) in verification.runs(
                lambda chance, t=target, d=draft, x=tokens: decide_chain(t, d, x, method, chance)
            ):
                text = (*tokens[:accepted], token)
                # Token 0 drawn in the place of a drafted one is dead at the next step.
                text = (0, -1) if text == (0,) else text
                mass[text] = mass.get(text, 0.0) + share * p
        assert mass.pop((0, -1)) == pytest.approx(world.p(())[0], abs=TOLERANCE)
        assert not any(text[0] == 0 for text in mass)
        rest = world.continued(mass, 2)
        joint = {text: p for text, p in world.joint(2).items() if text[0] != 0}
        assert verification.distance(rest, joint) <= TOLERANCE


def test_block_keeps_at_least_as_many_tokens(verification: Any) -> None:
    kept = []
    for seed in range(30):
        world = verification.world(4, seed, sharpness=(0.8, 0.8))
        kept.append([outcome(verification, world, 2, method)[1] for method in METHODS])
    token, block = np.array(kept).T
    assert (block >= token - TOLERANCE).all()
    assert block.mean() > token.mean() * 1.02


def test_one_token_is_kept_with_probability_1_less_the_total_variation(verification: Any) -> None:
    for seed in range(10):
        world = verification.world(6, seed, masked=True)
        overlap = np.minimum(world.p(()), world.q(())).sum()
        for method in METHODS:
            assert outcome(verification, world, 1, method)[1] == pytest.approx(overlap, abs=1e-12)


# Planted bugs. Each must fail what the tests above pass.

SEEDS = range(6)


def fails(exact: Any, length: int, method: Any, masked: bool = False, **options: Any) -> bool:
    worlds = [exact.world(4, seed, masked=masked) for seed in SEEDS]
    return max(deviation(exact, world, length, method, **options) for world in worlds) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_drawn_from_the_target_fails(
    verification: Any, method: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "excess", lambda p, q: p)
    assert fails(verification, 2, method)


def test_always_accept_fails(verification: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "acceptance", lambda log_p, log_q: 1.0)
    assert fails(verification, 1, "token")


def test_a_block_residual_without_its_scale_fails(verification: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "excess", lambda p, q: np.maximum(p / p.sum() - q, 0.0))
    assert fails(verification, 2, "block")


def test_a_block_that_stops_at_its_first_failed_test_fails(verification: Any) -> None:
    def first(target: Any, draft: Any, tokens: Any, method: Any, chance: Any) -> Any:
        class FirstFailure:
            draw, choose = chance.draw, chance.choose

            def __init__(self) -> None:
                self.passed: list[bool] = []

            def keeps(self, draft: int, probability: float) -> bool:
                # Asked from the last test to the first: all earlier ones must pass too.
                earlier = [chance.keeps(i, tests[i]) for i in range(draft)]
                return chance.keeps(draft, probability) and all(earlier)

        tests = decide_chain(target, draft, tokens, "block", Never())[2]
        return decide_chain(target, draft, tokens, method, FirstFailure())

    class Never:
        def keeps(self, draft: int, probability: float) -> bool:
            return False

        def draw(self, row: Any, step: int) -> int:
            return 0

        def choose(self, weights: Any) -> int:
            return 0

    assert fails(verification, 2, "block", decide=first)


@pytest.mark.parametrize("method", METHODS)
def test_an_argmax_draft_verified_with_soft_q_fails(verification: Any, method: Any) -> None:
    assert fails(verification, 1, method, drafts=most_probable)


@pytest.mark.parametrize("method", METHODS)
def test_a_top_k_draft_verified_with_raw_q_fails(verification: Any, method: Any) -> None:
    def top_2(world: Any, length: int) -> list[tuple[float, tuple[int, ...]]]:
        drafts = []
        for tokens in itertools.product(range(world.size), repeat=length):
            share = 1.0
            for i, token in enumerate(tokens):
                q = world.q(tokens[:i])
                q = np.where(q >= np.sort(q)[-2], q, 0.0)
                share *= q[token] / q.sum()
            if share > 0:
                drafts.append((share, tokens))
        return drafts

    assert fails(verification, 2, method, drafts=top_2)


@pytest.mark.parametrize("method", METHODS)
def test_a_draft_that_ignores_its_temperature_fails(verification: Any, method: Any) -> None:
    def at_1(world: Any, prefix: tuple[int, ...]) -> DraftRow:
        return DraftRow(world.draft_logits(prefix), 2.0)

    assert fails(verification, 2, method, draft_row=at_1)


@pytest.mark.parametrize("method", METHODS)
def test_dropping_a_drafted_token_that_is_not_allowed_fails(verification: Any, method: Any) -> None:
    """It has to be rejected instead: then what replaces it is drawn from [p - q]+, not from p."""

    def dropped(target: Any, draft: Any, tokens: Any, method: Any, chance: Any) -> Any:
        kept = [t if target[i].log_law(t) > -np.inf else -1 for i, t in enumerate(tokens)]
        return decide_chain(target, draft, kept, method, chance)

    assert fails(verification, 1, method, masked=True, decide=dropped)
    # A deterministic draft may be cut there: the residual of a token of probability 0 is p.
    point = {"drafts": most_probable, "draft_row": lambda world, prefix: DraftRow(None, 1.0)}
    assert not fails(verification, 2, method, masked=True, decide=dropped, **point)


@pytest.mark.parametrize("method", METHODS)
def test_a_target_without_its_mask_fails(verification: Any, method: Any) -> None:
    def unmasked(target: Any, draft: Any, tokens: Any, method: Any, chance: Any) -> Any:
        whole = [TargetRow(row._logits, None, 1.0) for row in target]
        accepted, token, tests = decide_chain(whole, draft, tokens, method, chance)
        return (
            accepted,
            chance.draw(target[accepted], 0) if accepted == len(tokens) else token,
            tests,
        )

    assert fails(verification, 1, method, masked=True, decide=unmasked)


# Through the public function, with uniforms.


def repeated(world: Any, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """One pair of laws at every position: target [B, K + 1, V] and draft [B, K, V] logits."""
    target = np.broadcast_to(world.target_logits(()), (rows, length + 1, world.size))
    draft = np.broadcast_to(world.draft_logits(()), (rows, length, world.size))
    return target, draft


def draw_drafts(world: Any, uniforms: np.ndarray) -> np.ndarray:
    return np.cumsum(world.q(())).searchsorted(uniforms, side="right").clip(max=world.size - 1)


def first_tokens(verdict: Any, drafts: np.ndarray) -> np.ndarray:
    tokens: np.ndarray = np.where(verdict.accepted > 0, drafts[:, 0], verdict.token)
    return tokens


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "rows"), [(16, 6_000), (4096, 2_000)])
def test_draws_follow_the_target_law(verification: Any, method: Any, size: int, rows: int) -> None:
    world = verification.world(size, 3, sharpness=(0.5, 0.5))
    target, draft = repeated(world, rows, 2)
    rng = np.random.default_rng(1)
    drafts = draw_drafts(world, rng.random((rows, 2)))
    verdict = verify_chain(target, drafts, draft, rng.random((rows, 3, 2)), method=method)
    assert not verification.chi_square_fails(first_tokens(verdict, drafts), world.p(()))
    second = verdict.accepted >= 1
    tokens = np.where(verdict.accepted > 1, drafts[:, 1], verdict.token)[second]
    if method == "token":
        assert not verification.chi_square_fails(tokens, world.p(()))


@pytest.mark.parametrize("method", METHODS)
def test_an_adversarial_draft(verification: Any, method: Any) -> None:
    world = verification.world(16, 5)
    world.draft_logits = lambda prefix: -world.target_logits(prefix)
    rows = 4_000
    target, draft = repeated(world, rows, 1)
    rng = np.random.default_rng(2)
    drafts = draw_drafts(world, rng.random((rows, 1)))
    verdict = verify_chain(target, drafts, draft, rng.random((rows, 2, 2)), method=method)
    assert verdict.accepted.mean() < 0.4
    assert not verification.chi_square_fails(first_tokens(verdict, drafts), world.p(()))


@pytest.mark.parametrize("method", METHODS)
def test_the_drafts_noise_used_again_for_the_residual_fails(verification: Any, method: Any) -> None:
    world = verification.world(16, 5, sharpness=(0.3, 0.3))
    rows = 2_500
    target, draft = repeated(world, rows, 1)
    rng = np.random.default_rng(1)
    noise = rng.random((rows, 2, 2))
    for uniforms, reused in ((noise[:, 0, 1:], True), (rng.random((rows, 1)), False)):
        drafts = draw_drafts(world, uniforms)
        verdict = verify_chain(target, drafts, draft, noise, method=method)
        tokens = first_tokens(verdict, drafts)
        assert verification.chi_square_fails(tokens, world.p(())) == reused


def two_rounds(world: Any, rows: int, *, keyed_by_position: bool) -> np.ndarray:
    """The first three tokens of many texts, as numbers below V^3, from two rounds of K = 2."""
    rng = np.random.default_rng(4)
    target, draft = repeated(world, rows, 2)
    by_position = rng.random((rows, 6))
    start = np.zeros(rows, np.int64)
    texts = np.zeros((rows, 8), np.int64)
    for _ in range(2):
        noise = rng.random((rows, 3, 2))
        if keyed_by_position:
            at = start[:, None] + np.arange(2)
            noise[:, 1:, 0] = np.take_along_axis(by_position, at, axis=1)
        drafts = draw_drafts(world, rng.random((rows, 2)))
        verdict = verify_chain(target, drafts, draft, noise, method="block")
        for b in range(rows):
            kept = verdict.accepted[b]
            tokens = [*drafts[b, :kept], verdict.token[b]]
            texts[b, start[b] : start[b] + len(tokens)] = tokens
            start[b] += len(tokens)
    # A text of two rejections has one token to come, which nothing was tested for yet.
    more = draw_targets(world, rng.random(rows))
    texts[start == 2, 2] = more[start == 2]
    numbers: np.ndarray = texts[:, :3] @ world.size ** np.arange(3)
    return numbers


def draw_targets(world: Any, uniforms: np.ndarray) -> np.ndarray:
    return np.cumsum(world.p(())).searchsorted(uniforms, side="right").clip(max=world.size - 1)


def test_tests_keyed_by_their_position_fail_from_round_to_round(verification: Any) -> None:
    """A number that a later test of a block failed by must not serve the next round."""
    world = verification.world(2, 7, sharpness=(0.5, 0.5))
    p = world.p(())
    law = np.array([p[n % 2] * p[n // 2 % 2] * p[n // 4] for n in range(8)])
    for keyed_by_position in (False, True):
        texts = two_rounds(world, 2_000, keyed_by_position=keyed_by_position)
        assert verification.chi_square_fails(texts, law) == keyed_by_position
