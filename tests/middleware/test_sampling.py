"""Samplers on large rows, with the schedule they are shipped with."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import chi2, norm

from midstream.middleware.errors import StrategyError
from midstream.middleware.law import Law
from midstream.middleware.random import Stream
from midstream.middleware.sampling import AWRS, Auto, Mask, sampler_of

FALSE_ALARM = 1e-4
AWRS_KINDS = {
    "geometric-2": AWRS(accepts=2),
    "geometric-4": AWRS(),
    "geometric-4-limit-100": AWRS(rejects=100),
    "recursive": AWRS(estimator="recursive"),
    "recursive-limit-50": AWRS(estimator="recursive", rejects=50),
}


def _row(valid_mass: float, size: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities and valid tokens (a twentieth of all) that hold exactly the given mass."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=size)
    valid = np.zeros(size, np.bool_)
    valid[rng.choice(size, size // 20, replace=False)] = True
    logits[valid] += np.log(valid_mass) - logsumexp(logits[valid])
    logits[~valid] += np.log1p(-valid_mass) - logsumexp(logits[~valid])
    return logits, valid


def _draws(sampler: Any, logits: np.ndarray, matcher: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    step = sampler.prepare(logits, matcher, 0)
    from midstream.middleware.random import StreamSource

    draws = [step(StreamSource(Stream(3, i))) for i in range(n)]
    weights = np.array([math.exp(d.log_weight) for d in draws])
    return np.array([d.token for d in draws]), weights


@pytest.mark.parametrize("mass", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("name", AWRS_KINDS)
def test_weights_and_tokens(one_step: Callable[..., Any], name: str, mass: float) -> None:
    """Mean weight by a z-bound, weight by token group by z-bounds, tokens by chi-square."""
    logits, valid = _row(mass)
    n = 1500
    tokens, weights = _draws(AWRS_KINDS[name], logits, one_step(valid), n)
    assert ((weights > 0) == (tokens >= 0)).all()
    groups = np.arange(logits.size) % 5  # unrelated to probability
    bound = norm.isf(FALSE_ALARM / 12)
    p = softmax(logits) * valid
    for group in range(5):
        inside = (tokens >= 0) & (groups[tokens] == group)
        contributions = np.where(inside, weights, 0.0)
        error = contributions.mean() - p[groups == group].sum()
        assert abs(error) < bound * contributions.std() / math.sqrt(n)
    drawn = tokens[tokens >= 0]
    if "limit" in name:
        return  # tokens that a limit let through are not distributed as p given valid
    expected = np.array([p[groups == g].sum() for g in range(5)]) / mass * drawn.size
    seen = np.bincount(groups[drawn], minlength=5)
    assert ((seen - expected) ** 2 / expected).sum() < chi2.isf(FALSE_ALARM, 4)


@pytest.mark.parametrize("mass", [0.5, 0.1])
def test_variance_of_the_geometric_estimator(one_step: Callable[..., Any], mass: float) -> None:
    """Two accepts: CV^2 = -ln Z / (1 - Z) - 1; four: at most (1 - Z) / 2."""
    logits, valid = _row(mass)
    _, weights = _draws(AWRS(accepts=2), logits, one_step(valid), 4000)
    expected = -math.log(mass) / (1 - mass) - 1
    assert weights.var() / mass**2 == pytest.approx(expected, rel=0.15)
    _, weights = _draws(AWRS(accepts=4), logits, one_step(valid), 2000)
    assert weights.var() / mass**2 < (1 - mass) / 2 * 1.15


def test_a_naive_ratio_is_biased_here(one_step: Callable[..., Any]) -> None:
    """The bounds of these tests are tight enough to catch accepted / drawn."""
    logits, valid = _row(0.1)
    _, weights = _draws(AWRS(accepts=2), logits, one_step(valid), 1500)
    naive = 2 / (1 / weights + 1)  # a / (a + n) from w = 1 / (a + n - 1)
    z = abs(naive.mean() - 0.1) / (naive.std() / math.sqrt(naive.size))
    assert z > norm.isf(FALSE_ALARM / 12)


@pytest.mark.parametrize("sampler", [AWRS(), AWRS(estimator="recursive")], ids=str)
def test_the_only_valid_token_far_down(one_step: Callable[..., Any], sampler: AWRS) -> None:
    """Rank 50,000 of 128,256: found, with a weight near its mass, not called dead."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=128_256).astype(np.float32)
    token = int(np.argsort(-logits)[50_000])
    valid = np.zeros(logits.size, np.bool_)
    valid[token] = True
    draw = sampler.draw(logits, one_step(valid), 0, Stream(5))
    assert (draw.token, draw.status) == (token, "running")
    exact = float(logits[token]) - logsumexp(logits.astype(np.float64))
    if sampler.estimator == "recursive":  # the look ahead is invalid for certain: w = p(token)
        assert draw.log_weight == pytest.approx(exact, abs=1e-5)
    else:
        assert draw.log_weight == pytest.approx(exact, abs=4)


@pytest.mark.parametrize("mass", [1e-6, 1e-12])
@pytest.mark.parametrize("name", ["geometric-4", "recursive"])
def test_tiny_masses_are_not_called_dead(
    one_step: Callable[..., Any], name: str, mass: float
) -> None:
    logits, valid = _row(mass, size=400)
    _, weights = _draws(AWRS_KINDS[name], logits, one_step(valid), 300)
    assert (weights > 0).all()
    assert weights.mean() == pytest.approx(mass, rel=0.5)


@pytest.mark.parametrize("sampler", [AWRS(), AWRS(estimator="recursive")], ids=str)
def test_dead_only_after_the_whole_vocabulary(one_step: Callable[..., Any], sampler: AWRS) -> None:
    matcher = one_step(np.zeros(700, np.bool_))
    draw = sampler.draw(np.random.default_rng(0).normal(size=700) * 5, matcher, 0, Stream(0))
    assert (draw.token, draw.status, draw.log_weight) == (-1, "dead", -math.inf)
    assert sorted(matcher.asked) == list(range(700))
    assert draw.checks == 700


@pytest.mark.parametrize(
    "sampler", [AWRS(rejects=10), AWRS(estimator="recursive", rejects=10)], ids=str
)
def test_a_budget_that_runs_out_is_exhausted(one_step: Callable[..., Any], sampler: AWRS) -> None:
    draw = sampler.draw(np.zeros(700), one_step(np.zeros(700, np.bool_)), 0, Stream(0))
    assert (draw.status, draw.log_weight, draw.token) == ("exhausted", -math.inf, -1)


LAWS = [
    Law(),
    Law(0.0),
    Law(top_k=2, truncation="target"),
    Law(top_p=0.9, truncation="target"),
    Law(min_p=0.1, truncation="target"),
]


@pytest.mark.parametrize("sampler", [Mask(), AWRS()], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_broken_logits_are_a_status(
    one_step: Callable[..., Any], sampler: Any, value: float, law: Law
) -> None:
    logits = np.zeros(50, np.float32)
    logits[7] = value
    matcher = one_step(np.ones(50, np.bool_), masked=True)
    draw = sampler.draw(logits, matcher, 0, Stream(0), law=law)
    assert draw.status == "dead"
    assert "NaN or +inf" in draw.reason


@pytest.mark.parametrize("sampler", [Mask(), AWRS()], ids=str)
def test_a_fault_of_the_constraint_is_a_status(one_step: Callable[..., Any], sampler: Any) -> None:
    matcher = one_step(np.ones(50, np.bool_), masked=True, fault=RuntimeError("lost my parser"))
    draw = sampler.draw(np.zeros(50), matcher, 0, Stream(0))
    assert draw.status == "dead"
    assert draw.reason == "the constraint failed: RuntimeError: lost my parser"


def test_ids_beyond_the_vocabulary_and_special_ones_are_never_drawn(
    one_step: Callable[..., Any],
) -> None:
    """A padded row: AWRS prunes what stands for no text before it asks anybody."""
    matcher = one_step(np.ones(40, np.bool_), eos=[3])
    logits = np.zeros(64)
    logits[40:] = 30.0  # nearly all mass is padding
    for i in range(20):
        draw = AWRS().draw(logits, matcher, 0, Stream(0, i))
        assert draw.token < 40
        assert draw.log_weight == pytest.approx(math.log(40 / (40 + 24 * math.exp(30))), abs=1e-9)


def test_ends_of_sequence_are_drawn_as_the_first(one_step: Callable[..., Any]) -> None:
    allowed = np.zeros(30, np.bool_)
    allowed[[4, 9, 11]] = True
    for sampler in (Mask(), AWRS(), AWRS(estimator="recursive")):
        matcher = one_step(allowed, eos=[9, 4, 11], masked=True)
        draw = sampler.draw(np.zeros(30), matcher, 0, Stream(1))
        assert (draw.token, draw.status) == (9, "finished")


def test_greedy(one_step: Callable[..., Any]) -> None:
    logits, valid = _row(0.01)
    best = int(np.flatnonzero(valid)[np.argmax(logits[valid])])
    greedy = Law(temperature=0.0)
    assert not greedy.proper
    masked = Mask().draw(logits, one_step(valid, masked=True), 0, Stream(0), law=greedy)
    assert masked.token == best
    assert masked.log_weight == pytest.approx(math.log(0.01), abs=1e-9)
    walked = AWRS().draw(logits, one_step(valid), 0, Stream(0), law=greedy)
    assert walked.token == best
    assert math.isnan(walked.log_weight)
    assert walked.checks < 600  # far from the whole vocabulary
    ties = np.zeros(100)
    assert AWRS().draw(ties, one_step(np.arange(100) > 40), 0, Stream(0), law=greedy).token == 41
    dead = AWRS().draw(ties, one_step(np.zeros(100, np.bool_)), 0, Stream(0), law=greedy)
    assert (dead.status, dead.checks) == ("dead", 100)


def test_truncation_that_leaves_nothing_allowed_is_dead_and_says_so(
    one_step: Callable[..., Any],
) -> None:
    logits, valid = _row(0.01)
    law = Law(top_k=2, truncation="target")
    for sampler in (Mask(), AWRS(), AWRS(estimator="recursive")):
        draw = sampler.draw(logits, one_step(valid, masked=True), 0, Stream(0), law=law)
        assert (draw.status, draw.reason) == ("dead", "truncation left nothing that is allowed")


@pytest.mark.parametrize("sampler", [AWRS(), AWRS(estimator="recursive")], ids=str)
def test_gaps_that_float64_cannot_hold(one_step: Callable[..., Any], sampler: AWRS) -> None:
    """Valid mass from e^-600 to e^-900: a weight of that size, or a status that says why not."""
    valid = np.arange(40) == 1
    for gap in (600, 690, 700, 705, 708, 720, 740, 745, 760, 900):
        logits = np.full(40, -2000.0)
        logits[0], logits[1] = 0.0, -gap
        draw = sampler.draw(logits, one_step(valid), 0, Stream(1))
        if sampler.estimator == "recursive" or gap <= 690:
            assert draw.log_weight == pytest.approx(-gap, abs=4)
        else:
            assert (draw.status, draw.log_weight) == ("exhausted", -math.inf)
            assert "below 1e-300" in draw.reason


def test_greedy_walks_keep_their_limit(one_step: Callable[..., Any]) -> None:
    logits = np.arange(100.0)
    greedy = Law(0.0)
    draw = AWRS(rejects=5).draw(logits, one_step(logits < 50), 0, Stream(0), law=greedy)
    assert (draw.status, draw.checks) == ("exhausted", 5)
    masked = np.where(logits < 50, logits, np.finfo(np.float32).min).astype(np.float32)
    dead = AWRS().draw(masked, one_step(logits >= 50), 0, Stream(0), law=greedy)
    assert dead.status == "dead"


def test_truncation_after_the_mask_is_labelled_lossy(one_step: Callable[..., Any]) -> None:
    logits, valid = _row(0.01)
    law = Law(top_k=2, truncation="after_mask")
    assert not law.proper
    best = np.flatnonzero(valid)[np.argsort(-logits[valid])[:2]]
    matcher = one_step(valid, masked=True)
    tokens = {Mask().draw(logits, matcher, 0, Stream(0, i), law=law).token for i in range(40)}
    assert tokens == set(best.tolist())
    with pytest.raises(StrategyError, match="after_mask"):
        AWRS().draw(logits, matcher, 0, Stream(0), law=law)


def test_auto_is_a_function_of_the_matcher(one_step: Callable[..., Any]) -> None:
    allowed = np.ones(10, np.bool_)
    black_box, cheap = one_step(allowed), one_step(allowed, masked=True)
    dear = one_step(allowed, masked=True, mask_cost=1e9)
    for matcher, kind in ((black_box, AWRS), (cheap, Mask), (dear, AWRS)):
        sampler, why = Auto().choice(matcher)
        assert isinstance(sampler, kind)
        assert why
        assert Auto().draw(np.zeros(10), matcher, 0, Stream(0)).sampler == kind.__name__.lower()


@pytest.mark.parametrize("sampler", [Mask(), AWRS(), AWRS(estimator="recursive")], ids=str)
def test_a_draw_depends_on_its_own_row_and_stream_alone(
    one_step: Callable[..., Any], sampler: Any
) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(16, 4096)).astype(np.float32)
    matchers = [one_step(rng.random(4096) < 0.05, masked=True) for _ in range(16)]

    def draw(i: int, rows: np.ndarray) -> Any:
        return sampler.draw(rows[i], matchers[i], 0, Stream(9, i, 4))

    alone = [draw(i, logits) for i in range(16)]
    shuffled = {i: draw(i, logits) for i in rng.permutation(16).tolist()}
    copied = [draw(i, np.ascontiguousarray(logits[:, ::1])) for i in range(16)]
    assert alone == [shuffled[i] for i in range(16)] == copied
    for threads in (2, 8):
        with ThreadPoolExecutor(threads) as pool:
            assert list(pool.map(lambda i: draw(i, logits), range(16))) == alone
    assert sampler.draw(logits[0], matchers[0], 0, Stream(10, 0, 4)) != alone[0]


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: AWRS(accepts=1), "accepts"),
        (lambda: AWRS(rejects=1), "rejects"),
        (lambda: AWRS(estimator="recursive", rejects=0), "rejects"),
        (lambda: AWRS(estimator="best"), "estimator"),  # type: ignore[arg-type]
        (lambda: Law(temperature=-1), "temperature"),
        (lambda: Law(temperature=math.nan), "temperature"),
        (lambda: Law(temperature=1e-40), "temperature"),
        (lambda: Law(top_p=0.0, truncation="target"), "top_p"),
        (lambda: Law(top_k=5), "truncation"),
        (lambda: Law(min_p=1.0, truncation="target"), "min_p"),
        (lambda: sampler_of("greedy"), "sampler"),
        (lambda: Stream(-1), "seed"),
        (lambda: Stream(0, 2**32), "sequence"),
        (lambda: Stream(0).uniforms("tokens", 1), "purpose"),
    ],
)
def test_bad_options_are_named(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: got "):
        make()


def test_a_mask_is_not_made_up(one_step: Callable[..., Any]) -> None:
    with pytest.raises(StrategyError, match="'awrs' or 'auto'"):
        Mask().draw(np.zeros(5), one_step(np.ones(5, np.bool_)), 0, Stream(0))
