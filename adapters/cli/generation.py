"""What `midstream generate` does, apart from the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midstream.middleware.bytes.healed_start import HealedStart, healed_start, unhealed_start
from midstream.middleware.bytes.healing import Healer
from midstream.middleware.errors import InputError
from midstream.middleware.matcher import Matcher
from midstream.middleware.particles import Particle, SMCResult
from midstream.middleware.random import sequence_of
from midstream.middleware.sampling import Auto
from midstream.middleware.smc import run
from midstream.middleware.strategy import AwrsSampler, Strategy

if TYPE_CHECKING:
    from midstream.adapters.cli.model import LoadedModel

HOST = "transformers"

Report = Callable[[int, str], None]
"""Called with how many tokens are done, and with what goes on."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Particles. sampler: "mask" or "awrs", the one that drew them. reason: why that one."""

    result: SMCResult
    sampler: str
    reason: str


def generation(strategy: Strategy, source: str, prompt: str, report: Report) -> Generation:
    """Go on from a prompt as a strategy says.

    source: see `load_model`. Raises InputError for all that is wrong with the strategy, the model
    or the prompt, before the model reads anything.
    """
    strategy.validate_for(HOST)
    constraint = strategy.build_constraint()
    report(0, "loading the model")
    from midstream.adapters.cli.model import load_model  # torch takes seconds to import
    from midstream.logits_processors.fit import CompiledConstraints

    model = load_model(source)
    options = strategy.run_options()
    compiled = CompiledConstraints(constraint, model.host.vocabulary, options["sampler"])
    compiled.check_law(options["law"])
    matcher = compiled.matchers[0]
    sampler = options["sampler"]
    if isinstance(sampler, Auto):
        chosen, reason = sampler.choice(matcher)
        name = "awrs" if chosen is sampler.awrs else "mask"
    else:
        name = "awrs" if isinstance(strategy.sampler, AwrsSampler) else "mask"
        reason = "as asked"
    ids = model.encode(prompt)
    if not ids:
        raise InputError("--prompt", "no token", "a text of at least one token")
    model.host.check_length(len(ids), strategy.limits.max_new_tokens)
    steps = 0

    def on_step(particles: Sequence[Particle]) -> None:
        nonlocal steps
        steps += 1
        running = sum(particle.status == "running" for particle in particles)
        report(steps, f"{running} of {len(particles)} particles running")

    start = _start(strategy, model, ids, matcher, report)
    result = run(
        model.host.start([start.prompt]),
        start.matcher,
        sequence=sequence_of(ids),
        begun=start.begun,
        log_weight=start.log_weight,
        on_step=on_step,
        **options,
    )
    return Generation(result, name, reason)


def _start(
    strategy: Strategy, model: LoadedModel, ids: list[int], matcher: Matcher, report: Report
) -> HealedStart:
    """Where the particles begin: behind the prompt, or behind the healed one."""
    wanted, law = strategy.healing, strategy.build_law()
    if wanted is None:
        return unhealed_start(ids, matcher)
    report(0, "healing the prompt")
    healer = Healer(model.host, model.tokenizer, target=wanted.target, law=law)
    sequence = sequence_of(ids)
    return healed_start(healer, ids, matcher, seed=strategy.seed, sequence=sequence)
