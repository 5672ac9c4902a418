"""Metrics of one server, for Prometheus. None of them holds anything of a request's text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from midstream.middleware.draw import Status

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
REQUEST_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CHECKS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0, 4096.0)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The metrics and their registry, which is this server's own.

    service: "decoding", "logits_processing" or "bytes".
    What a step counts is looked up by its labels once: `labels` takes two microseconds each time.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        ProcessCollector(registry=registry)  # memory, file descriptors
        self._requests = Counter(
            "midstream_requests", "Calls that ended.", ["method", "code"], registry=registry
        )
        self._running = Gauge(
            "midstream_requests_running", "Calls that run.", ["method"], registry=registry
        )
        self._request_seconds = Histogram(
            "midstream_request_seconds",
            "Time of a call.",
            ["method"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        tokens = Counter(
            "midstream_tokens", "Tokens that were drawn.", ["service"], registry=registry
        )
        draws = Counter(
            "midstream_draws", "Draws by their outcome.", ["service", "status"], registry=registry
        )
        checks = Histogram(
            "midstream_checks_per_draw",
            "Tokens that the constraint checked one by one for a draw.",
            ["service"],
            buckets=CHECKS,
            registry=registry,
        )
        dead = Counter(
            "midstream_dead_particles",
            "Sequences that ended dead or exhausted.",
            ["service", "status"],
            registry=registry,
        )
        ess = Histogram(
            "midstream_effective_sample_share",
            "Effective sample size before a step's resampling, as a share of the particles.",
            ["service"],
            buckets=SHARES,
            registry=registry,
        )
        step_seconds = Histogram(
            "midstream_step_seconds",
            "Time of a step, by phase.",
            ["service", "phase"],
            buckets=SECONDS,
            registry=registry,
        )
        self._queue = Gauge(
            "midstream_queue_depth", "Work that waits for a thread.", ["pool"], registry=registry
        )
        self._draws_of = cache(draws.labels)
        self._checks_of = cache(checks.labels)
        self._dead_of = cache(dead.labels)
        self._tokens_of = cache(tokens.labels)
        self._ess_of = cache(ess.labels)
        self._phase_of = cache(step_seconds.labels)

    def request_began(self, method: str) -> None:
        """A call was let in."""
        self._running.labels(method).inc()

    def request_ended(self, method: str, code: str, seconds: float) -> None:
        """A call that was let in ended with a status."""
        self._running.labels(method).dec()
        self._request_seconds.labels(method).observe(seconds)
        self._requests.labels(method, code).inc()

    def request_refused(self, method: str, code: str) -> None:
        """A call was not let in."""
        self._requests.labels(method, code).inc()

    def draw(self, service: str, status: Status, checks: int) -> None:
        """A draw. status: how its sequence stands after it."""
        self._draws_of(service, status).inc()
        self._checks_of(service).observe(checks)
        if status in ("dead", "exhausted"):
            self._dead_of(service, status).inc()
        else:
            self._tokens_of(service).inc()

    def effective_sample(self, service: str, ess: float, particles: int) -> None:
        """An effective sample size, of so many particles."""
        self._ess_of(service).observe(ess / particles)

    def step_seconds(self, service: str, phase: str, seconds: float) -> None:
        """Time of one phase of a step."""
        self._phase_of(service, phase).observe(seconds)

    def watch_queue(self, pool: str, depth: Callable[[], float]) -> None:
        """Read a pool's queue whenever metrics are asked for."""
        self._queue.labels(pool).set_function(depth)
