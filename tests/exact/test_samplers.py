"""Proper weighting of each sampler, token by token, by enumeration of every random choice."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from midstream.middleware.errors import StrategyError
from midstream.middleware.estimators import Schedule
from midstream.middleware.law import Law
from midstream.middleware.random import Stream
from midstream.middleware.sampling import AWRS, Mask

TOLERANCE = 1e-9
ONE = Schedule(rounds=(1,), fold_above=0.0)
"""One draw a round, so that no round branches without being looked at."""


def _expected(p: np.ndarray, allowed: set[int], eos: tuple[int, ...]) -> np.ndarray:
    """p(t) allowed(t), with all end-of-sequence mass on the first id."""
    target = np.array([p[t] if t in allowed else 0.0 for t in range(p.size)])
    target[eos[0]] = target[list(eos)].sum()
    target[list(eos[1:])] = 0.0
    return target


def _matcher(exact: Any, size: int, allowed: set[int], eos: tuple[int, ...], **options: Any) -> Any:
    complete = {(t,) for t in allowed if t not in eos} | ({()} if allowed & set(eos) else set())
    return exact.matcher(exact.vocabulary(size, eos), frozenset(complete), **options)


def _deviation(
    exact: Any,
    sampler: Any,
    p: np.ndarray,
    allowed: set[int],
    eos: tuple[int, ...],
    *,
    limit: int | None = None,
    law: Law = Law(),  # noqa: B008
    proposal: np.ndarray | None = None,
    target: np.ndarray | None = None,
    **options: Any,
) -> float:
    """The largest relative error of E[w 1{x = t}] over tokens."""
    matcher = _matcher(exact, p.size, allowed, eos, **options)
    logits = exact.logits(p)

    def run(source: Any) -> Any:
        draw = sampler.prepare(logits, matcher, (), law=law, proposal=proposal)(source)
        assert not draw.reason.startswith("the constraint failed"), draw.reason
        return draw

    sums, total = exact.totals(exact.runs(run, limit), p.size)
    assert abs(total - 1) < 1e-9
    expected = _expected(p, allowed, eos) if target is None else target
    assert not sums[expected == 0].any()
    positive = expected > 0
    return float(np.abs(sums[positive] / expected[positive] - 1).max(initial=0.0))


def _law(valid_mass: float) -> tuple[np.ndarray, set[int]]:
    """Five tokens, of which 1, 3 and the end (4) are valid with the given mass in all."""
    p = np.array([0.7, 0.5, 0.3, 0.3, 0.2])
    valid = [1, 3, 4]
    p[valid] *= valid_mass / p[valid].sum()
    rest = [0, 2]
    p[rest] *= (1 - valid_mass) / p[rest].sum()
    return p, set(valid)


MASSES = [0.5, 1e-1, 1e-2, 1e-4, 1e-6, 1e-12]
AWRS_VARIANTS = {
    "geometric-2": (AWRS(accepts=2, schedule=ONE), None),
    "geometric-4": (AWRS(accepts=4, schedule=ONE), None),
    "geometric-3-limit-4": (AWRS(accepts=3, rejects=4, schedule=ONE), 4),
    "geometric-2-limit-2": (AWRS(accepts=2, rejects=2, schedule=ONE), 2),
    "recursive": (AWRS(estimator="recursive", schedule=ONE), None),
    "recursive-limit-1": (AWRS(estimator="recursive", rejects=1, schedule=ONE), None),
    "recursive-limit-2": (AWRS(estimator="recursive", rejects=2, schedule=ONE), None),
    "recursive-limit-3": (AWRS(estimator="recursive", rejects=3, schedule=ONE), None),
}


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("name", AWRS_VARIANTS)
def test_awrs_is_proper_for_each_token(exact: Any, name: str, mass: float) -> None:
    sampler, limit = AWRS_VARIANTS[name]
    p, allowed = _law(mass)
    assert _deviation(exact, sampler, p, allowed, (4,), limit=limit) <= TOLERANCE


@pytest.mark.parametrize("mass", MASSES)
def test_mask_is_proper_for_each_token(exact: Any, mass: float) -> None:
    p, allowed = _law(mass)
    assert _deviation(exact, Mask(), p, allowed, (4,)) <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["geometric-2", "geometric-2-limit-2", "recursive", "recursive-limit-2"]
)
def test_every_set_of_valid_tokens(exact: Any, name: str) -> None:
    sampler, limit = AWRS_VARIANTS[name]
    p = np.array([0.4, 0.3, 0.2, 0.1])
    for flags in itertools.product([False, True], repeat=4):
        allowed = {t for t, flag in enumerate(flags) if flag}
        assert _deviation(exact, sampler, p, allowed, (3,), limit=limit) <= TOLERANCE


@pytest.mark.parametrize(
    "schedule", [Schedule((2,), 0.0), Schedule((1, 2), 0.0), Schedule((3, 1), 0.5)], ids=str
)
@pytest.mark.parametrize("estimator", ["geometric", "recursive"])
def test_rounds_and_folding_do_not_change_the_law(
    exact: Any, estimator: Any, schedule: Schedule
) -> None:
    p = np.array([0.5, 0.3, 0.2])
    rejects = (
        3 if schedule.fold_above else None
    )  # rejects that stay in the row need a limit to be enumerable
    sampler = AWRS(accepts=2, estimator=estimator, rejects=rejects, schedule=schedule)
    for allowed in ({1, 2}, {0, 2}, {2}, set()):
        assert _deviation(exact, sampler, p, allowed, (2,), limit=rejects) <= TOLERANCE


@pytest.mark.parametrize(
    "sampler", [Mask(), AWRS_VARIANTS["geometric-2"][0], AWRS_VARIANTS["recursive"][0]]
)
def test_several_ends_of_sequence_are_one_symbol(exact: Any, sampler: Any) -> None:
    p = np.array([0.3, 0.1, 0.25, 0.15, 0.2])
    for allowed in ({0, 1, 3, 4}, {1, 3, 4}, {0, 2}):
        assert _deviation(exact, sampler, p, allowed, (3, 1, 4)) <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["geometric-2", "geometric-3-limit-4", "recursive", "recursive-limit-2"]
)
def test_pruning_keeps_the_weight(exact: Any, name: str) -> None:
    sampler, limit = AWRS_VARIANTS[name]
    p, allowed = _law(1e-3)
    pruned = frozenset({0})
    assert _deviation(exact, sampler, p, allowed, (4,), limit=limit, pruned=pruned) <= TOLERANCE


@pytest.mark.parametrize(
    "sampler", [Mask(), AWRS_VARIANTS["geometric-2"][0], AWRS_VARIANTS["recursive"][0]]
)
@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_temperature_is_part_of_the_target(exact: Any, sampler: Any, temperature: float) -> None:
    p, allowed = _law(0.05)
    tempered = p ** (1 / temperature)
    tempered /= tempered.sum()
    deviation = _deviation(
        exact,
        sampler,
        p,
        allowed,
        (4,),
        law=Law(temperature),
        target=_expected(tempered, allowed, (4,)),
    )
    assert deviation <= TOLERANCE


@pytest.mark.parametrize(
    "sampler", [Mask(), AWRS_VARIANTS["geometric-2"][0], AWRS_VARIANTS["recursive"][0]]
)
def test_truncation_as_target(exact: Any, sampler: Any) -> None:
    p = np.array([0.35, 0.3, 0.2, 0.1, 0.05])
    for law, kept in (
        (Law(top_k=3, truncation="target"), [0, 1, 2]),
        (Law(top_p=0.6, truncation="target"), [0, 1]),
        (Law(min_p=0.2, truncation="target"), [0, 1, 2, 3]),
        (Law(top_k=4, top_p=0.5, min_p=0.9, truncation="target"), [0]),
    ):
        truncated = np.zeros(5)
        truncated[kept] = p[kept] / p[kept].sum()
        expected = _expected(truncated, {0, 2, 4}, (4,))
        deviation = _deviation(exact, sampler, p, {0, 2, 4}, (4,), law=law, target=expected)
        assert deviation <= TOLERANCE


PROPOSED = [
    Mask(),
    AWRS_VARIANTS["geometric-2"][0],
    AWRS_VARIANTS["recursive"][0],
    AWRS_VARIANTS["recursive-limit-2"][0],
]


@pytest.mark.parametrize("sampler", PROPOSED)
@pytest.mark.parametrize("eos", [(4,), (3, 1, 4)])
@pytest.mark.parametrize("pruned", [None, frozenset({0})])
def test_a_proposal_corrects_the_weight(
    exact: Any, sampler: Any, eos: tuple[int, ...], pruned: frozenset[int] | None
) -> None:
    p, allowed = np.array([0.3, 0.1, 0.25, 0.15, 0.2]), {1, 2, 3, 4}
    proposal = exact.logits([0.1, 0.4, 0.1, 0.3, 0.1])
    tempered = p**2.0 / (p**2.0).sum()
    cut = np.array([0.3, 0.0, 0.25, 0.0, 0.2]) / 0.75
    for law, target in (
        (Law(), p),
        (Law(0.5), tempered),
        (Law(top_k=3, truncation="target"), cut),
    ):
        deviation = _deviation(
            exact,
            sampler,
            p,
            allowed,
            eos,
            law=law,
            proposal=proposal,
            pruned=pruned,
            target=_expected(target, allowed, eos),
        )
        assert deviation <= TOLERANCE


def test_a_proposal_needs_the_support_of_what_may_be_given(exact: Any) -> None:
    p, allowed = _law(0.2)
    matcher = _matcher(exact, 5, allowed, (4,))
    lacks_valid, lacks_invalid = (
        exact.logits([0.5, 0, 0.1, 0.3, 0.1]),
        exact.logits([0, 1, 0, 1, 1]),
    )
    stream = Stream(0)
    draw = Mask().draw(exact.logits(p), matcher, (), stream, proposal=lacks_valid)
    assert draw.status == "dead"
    assert "no mass on tokens" in draw.reason
    assert Mask().draw(exact.logits(p), matcher, (), stream, proposal=lacks_invalid).token >= 0
    for law in (Law(0.0), Law(top_k=2, truncation="after_mask")):
        with pytest.raises(StrategyError, match="proposal"):
            Mask().draw(exact.logits(p), matcher, (), stream, law=law, proposal=lacks_invalid)


def test_a_proposal_far_from_the_target_keeps_its_weight(exact: Any) -> None:
    """Masses below what a float64 holds: ratios are formed in log domain."""
    matcher = _matcher(exact, 5, {1, 2}, (4,))
    logits = np.array([40.0, 0.0, 0.1, -1.0, -1.0])
    for proposal in (np.zeros(5), np.array([800.0, 0.0, 0.0, 0.0, 0.0])):
        draw = Mask().draw(logits, matcher, (), Stream(0), law=Law(0.05), proposal=proposal)
        # Two equal tokens of the proposal: w = 2 p(token).
        assert draw.log_weight == pytest.approx(
            np.log(2) + (logits[draw.token] - 40.0) / 0.05, abs=1e-9
        )


def _planted(weight: Callable[..., float], pick: Callable[..., int] | None = None) -> Any:
    """A geometric estimator with a wrong weight or a wrong choice,
    over draws with replacement and no pruning.
    """

    class Planted:
        def prepare(self, logits: Any, matcher: Any, state: Any, **_: Any) -> Any:
            return lambda source: self.draw(logits, matcher, state, source)

        def draw(self, logits: Any, matcher: Any, state: Any, source: Any) -> Any:
            from midstream.kernels.row import Row
            from midstream.middleware.draw import Draw

            row, drawn, flags = Row(logits), [], []
            while sum(flags) < 2 and len(drawn) - sum(flags) < 3:
                token = int(source.tokens(row, 1)[0])
                drawn.append(token)
                flags.append(bool(matcher.allows(state, [token])[0]))
            accepted = [t for t, f in zip(drawn, flags, strict=True) if f]
            if not accepted:
                return Draw(-1, -np.inf, "exhausted")
            token = (pick or (lambda a, _: a[0]))(accepted, logits)
            a, n = len(accepted), len(drawn) - len(accepted)
            return Draw(token, float(np.log(weight(a, n))), "running")

    return Planted()


def _right(a: int, n: int) -> float:
    return min(1, a) / (a + n - 1)


def test_the_check_passes_a_right_estimator_written_apart(exact: Any) -> None:
    p, allowed = _law(0.5)
    assert _deviation(exact, _planted(_right), p, allowed, (4,)) <= TOLERANCE


PLANTED = {
    "weight 1": _planted(lambda a, n: 1.0),
    "naive ratio": _planted(lambda a, n: a / (a + n)),
    "clipped weight": _planted(lambda a, n: max(_right(a, n), 0.4)),
    "most probable accepted token": _planted(
        _right, lambda a, logits: max(a, key=lambda t: logits[t])
    ),
    "lowest accepted id": _planted(_right, lambda a, _: min(a)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_negative_controls_fail_the_check(exact: Any, name: str) -> None:
    p, allowed = _law(0.5)
    assert _deviation(exact, PLANTED[name], p, allowed, (4,)) > 1e-3


def test_the_most_probable_accepted_token_keeps_the_total_right(exact: Any) -> None:
    """Why the check goes token by token: this bug cannot be seen in the total."""
    p, allowed = _law(0.5)
    matcher = _matcher(exact, 5, allowed, (4,))
    planted = PLANTED["most probable accepted token"]
    sums, _ = exact.totals(
        exact.runs(lambda source: planted.draw(exact.logits(p), matcher, (), source)), 5
    )
    assert abs(sums.sum() / 0.5 - 1) < TOLERANCE


def test_remaining_mass_by_subtraction_fails_at_small_mass(exact: Any, monkeypatch: Any) -> None:
    """1 - (mass of the rejected) has no digits left where the valid mass is 1e-12."""
    from midstream.kernels.row import Row

    def by_subtraction(row: Row) -> float:
        removed = sum(float(np.exp(row.log_p(token))) for token in row._removed)
        return float(np.log(1.0 - removed)) if removed < 1.0 else -np.inf

    monkeypatch.setattr(Row, "log_live", by_subtraction)
    p, allowed = _law(1e-12)
    assert _deviation(exact, AWRS_VARIANTS["recursive"][0], p, allowed, (4,)) > 1e-6


def test_a_sampler_that_gives_up_at_small_mass_fails_the_relative_check(exact: Any) -> None:
    p, allowed = _law(1e-12)
    gives_up = _planted(lambda a, n: 1e-300)
    assert _deviation(exact, gives_up, p, allowed, (4,)) > 0.99
