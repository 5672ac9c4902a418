"""Three ways to sample a task, and how far each is from the truth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from midstream.adapters.demo.rejection import sample_texts
from midstream.adapters.demo.sampling import Ask, by_calls, in_process
from midstream.adapters.demo.tasks import Task
from midstream.middleware.errors import InputError
from midstream.middleware.host import Host
from midstream.middleware.random import sequence_of
from midstream.middleware.sampling import AWRS

if TYPE_CHECKING:
    from midstream.adapters.demo.sampling import Run
    from midstream.adapters.sidecar.client import Client

NO_ANSWER = ""
"""What a text that did not end, or a particle that died, counts as in a `TextLaw`."""

TextLaw: TypeAlias = Mapping[str, float]
"""Shares of texts; they sum to 1."""


@dataclass(frozen=True, slots=True)
class Method:
    """What one way to sample gave. distance: total variation to the reference, from 0 to 1."""

    name: str
    law: TextLaw
    distance: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A task's reference and methods.

    reference: the law of the accepted among `samples` free samples. reference_error: the expected
    distance of that many exact draws from their own law. chance: the expected distance between the
    reference and as many exact draws as there are particles.
    """

    task: Task
    samples: int
    accepted: int
    particles: int
    reference: TextLaw
    reference_error: float
    chance: float
    evidence: float
    methods: tuple[Method, ...]

    @property
    def acceptance(self) -> float:
        """The share of free samples that satisfy the constraint."""
        return self.accepted / self.samples


def measure(
    host: Host,
    encode: Callable[[str], Sequence[int]],
    client: Client,
    task: Task,
    *,
    particles: int,
    samples: int,
    seed: int,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Measured:
    """Sample a task in the three ways, `particles` texts by midstream and `samples` freely.

    client: of a server with the same model, which draws what is sampled under a constraint that is
    data. Nothing is known beforehand: every number comes from the model, in this call.
    """
    prompt = encode(task.prompt)
    on_stage("free samples")
    generator = np.random.Generator(np.random.Philox(key=[seed, sequence_of(prompt)]))
    counts = sample_texts(
        host,
        prompt,
        samples=samples,
        max_new_tokens=task.max_new_tokens,
        generator=generator,
    )
    free: Counter[str] = Counter()
    for text, count in counts.items():
        free[text.decode(errors="replace")] += count
    kept = {text: count for text, count in free.items() if task.accepts(text)}
    accepted = sum(kept.values())
    if not accepted:
        what = f"none in {samples} free samples for {task.name!r}"
        raise InputError("accepted samples", what, "a model that answers the question now and then")
    reference = _shares(kept)
    ask = Ask(task, prompt, particles, seed)
    sample = by_calls(client, ask) if task.is_data else in_process(host, ask)
    on_stage("masked decoding")
    masked = unweighted(sample(task.masking, 0, 0.0))
    on_stage("AWRS-SMC")
    weighted = sample(AWRS(), 1, 0.5)
    laws = {
        "unconstrained": _shares(free),
        "masked": masked,
        "AWRS-SMC": weighted.posterior() or {NO_ANSWER: 1.0},
    }
    return Measured(
        task=task,
        samples=samples,
        accepted=accepted,
        particles=particles,
        reference=reference,
        reference_error=expected_distance(reference, 1 / accepted),
        chance=expected_distance(reference, 1 / accepted + 1 / particles),
        evidence=math.exp(weighted.log_evidence),
        methods=tuple(
            Method(name, law, total_variation(law, reference)) for name, law in laws.items()
        ),
    )


def unweighted(result: Run) -> TextLaw:
    """Masked decoding: the draws of a run without resampling, each counted alike."""
    return _shares(
        Counter(p.text if p.status == "finished" else NO_ANSWER for p in result.particles)
    )


def total_variation(p: TextLaw, q: TextLaw) -> float:
    """Half the sum of |p - q|: the share of texts that would have to be others."""
    return 0.5 * sum(abs(p.get(text, 0.0) - q.get(text, 0.0)) for text in p.keys() | q.keys())


def expected_distance(law: TextLaw, variance: float) -> float:
    """E of the total variation when each share p scatters by p (1 - p) `variance`, as normal."""
    spread = sum(math.sqrt(share * (1.0 - share)) for share in law.values())
    return 0.5 * math.sqrt(2.0 * variance / math.pi) * spread


def _shares(counts: Mapping[str, int]) -> TextLaw:
    total = sum(counts.values())
    return {text: count / total for text, count in counts.items()}
