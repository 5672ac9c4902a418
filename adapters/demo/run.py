"""The whole demonstration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from midstream.adapters.demo.measure import Measured, measure
from midstream.adapters.demo.tasks import TASKS
from midstream.middleware.host import Host

if TYPE_CHECKING:
    from midstream.adapters.sidecar.client import Client

PARTICLES = 1_000
SAMPLES = 20_000


def run_demo(
    host: Host,
    encode: Callable[[str], Sequence[int]],
    client: Client,
    *,
    seed: int,
    particles: int = PARTICLES,
    samples: int = SAMPLES,
    on_stage: Callable[[int, str], None] = lambda done, what: None,
) -> list[Measured]:
    """Measure every task.

    encode: the ids of a prompt. client: of a server with the same model. particles: of each
    midstream run. samples: free ones a task.
    on_stage: called before each stage with the number of stages done, of `STAGES`, and its name.
    """
    results: list[Measured] = []
    done = 0
    for task in TASKS:

        def staged(stage: str, name: str = task.name) -> None:
            nonlocal done
            on_stage(done, f"{name}: {stage}")
            done += 1

        results.append(
            measure(
                host,
                encode,
                client,
                task,
                particles=particles,
                samples=samples,
                seed=seed,
                on_stage=staged,
            )
        )
    return results


STAGES = 3 * len(TASKS)
"""Calls of `on_stage` in a run."""
