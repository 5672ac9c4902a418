"""How a run behaves: statuses, limits, dead ends, sharing of rows, cancellation, determinism."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from midstream.middleware import smc
from midstream.middleware.errors import ConstraintError, StrategyError, VocabularyError
from midstream.middleware.law import Law
from midstream.middleware.potentials import Potential
from midstream.middleware.random import Stream
from midstream.middleware.resampling import SCHEMES, effective_sample_size
from midstream.middleware.sampling import AWRS

END = 9


class CountingRows:
    """A model whose logits are a function of the prefix, and which counts what it is asked."""

    def __init__(
        self,
        logits: Callable[[tuple[int, ...]], Any],
        prefixes: Sequence[tuple[int, ...]],
        log: Any,
    ) -> None:
        self.function = logits
        self.prefixes = list(prefixes)
        self.log = log
        self.logits = np.stack([logits(p) for p in prefixes])

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> CountingRows:
        grown = [(*self.prefixes[p], t) for p, t in zip(parents, tokens, strict=True)]
        self.log.append(grown)
        return CountingRows(self.function, grown, self.log)


def _hashed(prefix: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([1, *prefix]).normal(size=10) * 2


def _start(logits: Callable[[tuple[int, ...]], Any] = _hashed) -> tuple[CountingRows, list[Any]]:
    log: list[Any] = []
    return CountingRows(logits, [()], log), log


@pytest.fixture
def digits(one_step: Callable[..., Any]) -> Any:
    """Any digits, any length, the end (9) always allowed."""
    return one_step(np.ones(10, np.bool_), eos=[END], masked=True)


def _run(matcher: Any, rows: Any = None, **options: Any) -> smc.SMCResult:
    settings: dict[str, Any] = {"particles": 6, "max_new_tokens": 8, "seed": 1, **options}
    return smc.run(rows or _start()[0], matcher, **settings)


def test_equal_prefixes_share_one_forward_row(digits: Any) -> None:
    rows, log = _start()
    result = _run(digits, rows, particles=30)
    for grown in log:
        assert len(set(grown)) == len(grown)
    generated = {p.token_ids[:n] for p in result.particles for n in range(1, len(p.token_ids) + 1)}
    forwarded = [prefix for grown in log for prefix in grown]
    assert len(forwarded) == len(set(forwarded))
    assert not [prefix for prefix in forwarded if prefix[-1] == END]
    assert {p for p in generated if p[-1] != END and len(p) < 8} <= set(forwarded)


def test_the_same_seed_gives_the_same_particles(digits: Any) -> None:
    runs = [_run(digits, seed=seed, particles=12) for seed in (5, 5, 6)]
    told = [[(p.token_ids, p.log_weight, p.status) for p in r.particles] for r in runs]
    assert told[0] == told[1] != told[2]
    assert runs[0].ess == runs[1].ess


def test_more_particles_keep_the_first_draws(digits: Any) -> None:
    """Without resampling a particle's stream is its own."""
    few = _run(digits, particles=3, ess_threshold=0.0)
    many = _run(digits, particles=9, ess_threshold=0.0)
    assert [p.token_ids for p in few.particles] == [p.token_ids for p in many.particles[:3]]


def test_length_counts_nothing_and_keeps_its_prefix_weight(digits: Any) -> None:
    def never_ends(prefix: tuple[int, ...]) -> np.ndarray:
        return np.where(np.arange(10) == END, -np.inf, 0.0)

    result = _run(digits, _start(never_ends)[0], max_new_tokens=3)
    assert {p.status for p in result.particles} == {"length"}
    assert {len(p.token_ids) for p in result.particles} == {3}
    assert all(p.log_weight == 0.0 for p in result.particles)
    assert result.log_evidence == -math.inf
    assert result.posterior() == {}
    assert result.status == "length"


def test_all_dead_is_a_result(one_step: Callable[..., Any]) -> None:
    matcher = one_step(np.zeros(10, np.bool_), eos=[END])
    result = _run(matcher, sampler="awrs")
    assert result.status == "dead"
    assert result.log_evidence == -math.inf
    assert all(
        p.reason == "nothing that has any probability is allowed here" for p in result.particles
    )
    exhausted = _run(matcher, sampler=AWRS(rejects=3))
    assert exhausted.status == "exhausted"


def test_a_model_that_breaks_is_a_result(digits: Any) -> None:
    def broken(prefix: tuple[int, ...]) -> np.ndarray:
        return np.where(np.arange(10) == END, -np.inf, np.nan if len(prefix) == 2 else 0.0)

    result = _run(digits, _start(broken)[0])
    assert result.status == "dead"
    assert "NaN" in result.particles[0].reason
    assert all(len(p.token_ids) == 2 for p in result.particles)


def test_a_matcher_that_refuses_what_it_allowed_kills_the_particle(digits: Any) -> None:
    class Liar:
        def __getattr__(self, name: str) -> Any:
            return getattr(digits, name)

        def advance(self, state: Any, token_id: int) -> None:
            return None

    result = _run(Liar())
    assert result.status == "dead"
    assert "refused" in result.particles[0].reason


def test_resampling_replaces_the_dead(one_step: Callable[..., Any]) -> None:
    """A potential kills one branch: its particles go on from the living, and ancestry tells."""
    matcher = one_step(np.ones(10, np.bool_), eos=[END], masked=True)
    low = [b"%d" % digit for digit in range(5)]
    kill = Potential(
        complete=lambda text: -math.inf if text[:1] in low else 0.0,
        prefix=lambda text: -math.inf if text[:1] in low else 0.0,
    )

    def flat(prefix: tuple[int, ...]) -> np.ndarray:
        return np.where(np.arange(10) == END, -3.0, 0.0)

    rows, _ = _start(flat)
    result = _run(matcher, rows, particles=40, potentials=[kill], ess_threshold=0.9)
    assert result.ancestry[0] != tuple(range(40))
    assert not [p for p in result.particles if p.text[:1] in tuple("01234")]
    assert [len(step) for step in result.ancestry] == [40] * len(result.ancestry)
    assert len(result.ess) == len(result.ancestry)


def test_a_potential_that_fails_is_a_status(digits: Any) -> None:
    def fails(text: bytes) -> float:
        raise RuntimeError("no reward today")

    result = _run(digits, potentials=[Potential(complete=fails, prefix=lambda text: 0.0)])
    dead = [p for p in result.particles if p.status == "dead"]
    assert dead
    assert dead[0].reason == "a potential failed: RuntimeError: no reward today"
    nan = _run(digits, potentials=[Potential(complete=lambda t: 0.0, prefix=lambda t: math.nan)])
    assert nan.status == "dead"


def test_cancellation_stops_before_the_next_model_call(digits: Any) -> None:
    def never_ends(prefix: tuple[int, ...]) -> np.ndarray:
        return np.where(np.arange(10) == END, -np.inf, 0.0)

    rows, log = _start(never_ends)
    steps: list[int] = []
    result = _run(
        digits,
        rows,
        on_step=lambda particles: steps.append(len(particles)),
        cancelled=lambda: len(steps) == 2,
    )
    assert steps == [6, 6]
    assert {p.status for p in result.particles} == {"cancelled"}
    assert len(log) == 2


class EndsAfterFive:
    """Fives and sixes; after a five the text must end. State: the last digit."""

    has_mask = False
    mask_cost = 0.0

    def __init__(self, vocabulary: Any) -> None:
        self.vocabulary = vocabulary

    def start(self) -> int:
        return 6

    def allows(self, state: int, token_ids: Sequence[int]) -> np.ndarray:
        return np.isin(token_ids, [END] if state == 5 else [5, 6])

    def advance(self, state: int, token_id: int) -> int:
        return token_id

    def superset(self, state: int, out: np.ndarray) -> bool:
        return False

    def tokens_to_finish(self, state: int) -> None:
        return None


def test_where_the_end_is_rare_aside_keeps_the_finished(digits: Any) -> None:
    """The end costs e^-8: resampled together the first to finish is lost, set aside it stays.

    Both are unbiased; "together" is so only through runs too rare to be seen here.
    """

    def rare(prefix: tuple[int, ...]) -> np.ndarray:
        return np.where(np.arange(10) == END, -8.0, 0.0)

    total = 9 + math.exp(-8.0)
    exact = sum(total ** -(n + 1) * math.exp(-8.0) for n in range(1, 6))
    matcher = EndsAfterFive(digits.vocabulary)
    ratio: dict[str, np.ndarray] = {}
    for mode in ("aside", "together"):
        runs = [
            _run(matcher, _start(rare)[0], finished=mode, seed=seed, max_new_tokens=6, particles=12)
            for seed in range(60)
        ]
        ratio[mode] = np.array([math.exp(r.log_evidence) for r in runs]) / exact
    assert 0.8 < ratio["aside"].mean() < 1.2
    assert 0.7 < np.median(ratio["aside"]) < 1.3
    assert np.median(ratio["together"]) < 0.01
    assert ratio["together"].mean() < 0.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_offspring_are_expected_in_proportion(scheme: str) -> None:
    """E[offspring of i] = N W_i, over streams, by a z-bound; systematic is within one of N W_i."""
    from midstream.middleware.random import StreamSource

    weights = np.array([0.05, 0.0, 0.4, 0.15, 0.1, 0.3])
    n = 3000
    counts = np.array(
        [
            np.bincount(SCHEMES[scheme](weights, StreamSource(Stream(7, i))), minlength=6)
            for i in range(n)
        ]
    )
    assert (counts.sum(axis=1) == 6).all()
    assert not counts[:, 1].any()
    error = np.abs(counts.mean(axis=0) - 6 * weights)
    assert (error <= 4.4 * counts.std(axis=0) / math.sqrt(n) + 1e-12).all()
    if scheme in ("systematic", "residual"):
        assert (counts >= np.floor(6 * weights - 1e-9)).all()
    if scheme == "systematic":
        assert (counts <= np.ceil(6 * weights + 1e-9)).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_particle_that_has_everything(scheme: str) -> None:
    from midstream.middleware.random import StreamSource

    for place in (0, 3, 4):
        weights = np.zeros(5)
        weights[place] = 1.0
        assert SCHEMES[scheme](weights, StreamSource(Stream(1))) == [place] * 5


def test_effective_sample_size() -> None:
    assert effective_sample_size(np.zeros(7)) == pytest.approx(7)
    assert effective_sample_size(np.array([0.0, -np.inf])) == pytest.approx(1)
    assert effective_sample_size(np.full(3, -np.inf)) == 0.0
    assert effective_sample_size(np.array([-2000.0, -2000.0])) == pytest.approx(2)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"particles": 0}, "particles"),
        ({"particles": 2.5}, "particles"),
        ({"particles": True}, "particles"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"resample_every": 0}, "resample_every"),
        ({"ess_threshold": 1.5}, "ess_threshold"),
        ({"ess_threshold": math.nan}, "ess_threshold"),
        ({"resampling": "bootstrap"}, "resampling"),
        ({"finished": "both"}, "finished"),
        ({"law": Law(temperature=0.0)}, "temperature"),
        ({"sampler": "best"}, "sampler"),
    ],
)
def test_bad_options_are_named_before_any_model_call(
    digits: Any, options: dict[str, Any], argument: str
) -> None:
    rows, log = _start()
    with pytest.raises(StrategyError, match=f"^{argument}: got "):
        _run(digits, rows, **options)
    assert not log


def test_rows_shorter_than_the_vocabulary_are_refused(digits: Any) -> None:
    rows, log = _start(lambda prefix: np.zeros(7))
    with pytest.raises(VocabularyError, match="rows of 7; accepted: at least 10"):
        _run(digits, rows)
    assert not log


def test_a_constraint_that_cannot_end_in_time_is_an_error(one_step: Callable[..., Any]) -> None:
    class Long:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def tokens_to_finish(self, state: int) -> int:
            return 20 - state

    rows, log = _start()
    with pytest.raises(ConstraintError):
        _run(Long(one_step(np.ones(10, np.bool_), eos=[END], masked=True)), rows)
    assert not log


def test_the_evidence_is_right_on_average_where_nothing_is_enumerated(digits: Any) -> None:
    """Mean of exp(log evidence) over seeds against the sum over all texts of at most 3 digits."""
    allowed = [2, 3, END]
    matcher = type(digits)(digits.vocabulary, np.isin(np.arange(10), allowed), masked=True)

    def mass(prefix: tuple[int, ...]) -> float:
        p = np.exp(_hashed(prefix))
        p /= p.sum()
        total = float(p[END])
        if len(prefix) < 3:
            total += sum(float(p[t]) * mass((*prefix, t)) for t in (2, 3))
        return total

    for sampler in ("mask", "awrs"):
        values = np.array(
            [
                math.exp(_run(matcher, max_new_tokens=4, seed=s, sampler=sampler).log_evidence)
                for s in range(300)
            ]
        )
        z = (values.mean() - mass(())) / (values.std() / math.sqrt(values.size))
        assert abs(z) < 4.0
