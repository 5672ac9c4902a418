"""What `Decoding` does for one request, apart from the wire's calls and the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from midstream.adapters.sidecar.admission import FIELD, Prepared, admitted, prepared
from midstream.adapters.sidecar.forwards import Logits
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.metrics import Metrics
from midstream.adapters.sidecar.models import Served, ServedModel
from midstream.adapters.sidecar.wire.errors import invalid, refused
from midstream.adapters.sidecar.wire.results import STATUSES, resampling_message, summary_message
from midstream.middleware.bytes.healed_start import HealedStart, healed_start, unhealed_start
from midstream.middleware.bytes.healing import Healed
from midstream.middleware.draw import NO_TOKEN
from midstream.middleware.errors import InputError
from midstream.middleware.particles import Particle
from midstream.middleware.random import sequence_of
from midstream.middleware.smc import SMC, Growth
from midstream.middleware.strategy import Strategy
from midstream.proto.v1 import decoding_pb2 as pb
from midstream.proto.v1 import status_pb2 as status_pb

METRICS = "decoding"

_KINDS = (pb.EVENT_KIND_TOKENS, pb.EVENT_KIND_RESAMPLINGS)


@dataclass(frozen=True, slots=True)
class Grown:
    """What a step came to.

    growth: how the rows go on; None where nothing does. events: what to tell of the step.
    summary: of the run, after its last step.
    """

    growth: Growth | None
    events: tuple[pb.GenerateEvent, ...]
    summary: status_pb.Summary | None


class Generation:
    """A run that has been checked and compiled.

    most_rows: of the model, at a time. most_tokens: of each, after the prompt. started: the first
    event.
    """

    def __init__(
        self,
        model: ServedModel,
        prompt: Sequence[int],
        ready: Prepared,
        smc: SMC,
        kinds: set[int],
        healed: Healed | None = None,
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.most_rows = ready.strategy.smc.particles
        self.most_tokens = ready.strategy.limits.max_new_tokens
        fingerprint = model.vocabulary.fingerprint
        self.started = pb.Started(
            model=model.alias, prompt_token_ids=prompt, vocabulary_fingerprint=fingerprint
        )
        if healed is not None:
            self.started.overshoot = healed.overshoot
            self.started.log_cover = healed.log_cover
        self._ready = ready
        self._smc = smc
        self._kinds = kinds

    def step(self, logits: Logits, metrics: Metrics) -> Grown:
        """One token for each running particle. logits: [R, V], of the rows that go on."""
        smc = self._smc
        position = smc.position
        everybody = list(smc.particles)
        drawing = [
            (each, each.checks, len(each.text_bytes))
            for each in everybody
            if each.status == "running"
        ]
        growth = smc.step(logits)
        events = []
        if pb.EVENT_KIND_TOKENS in self._kinds:
            tokens = [_token(each, position, text) for each, _, text in drawing]
            events.append(pb.GenerateEvent(tokens=pb.Tokens(position=position, tokens=tokens)))
        for each, checks, _ in drawing:
            metrics.draw(METRICS, each.status, each.checks - checks)
        ess = smc.population.ess[-1]
        if ess > 0:
            metrics.effective_sample(METRICS, ess, len(everybody))
        replaced = any(a is not b for a, b in zip(everybody, smc.particles, strict=True))
        if replaced and pb.EVENT_KIND_RESAMPLINGS in self._kinds:
            ancestors = smc.population.ancestry[-1]
            told = resampling_message(smc.position, ancestors, ess)
            events.append(pb.GenerateEvent(resampling=told))
        return Grown(growth, tuple(events), self._summary() if growth is None else None)

    def _summary(self) -> status_pb.Summary:
        ready = self._ready
        return summary_message(
            self._smc.result(),
            sampler=ready.name,
            sampler_reason=ready.reason,
            seed=ready.strategy.seed,
        )


def generation(
    model: ServedModel, request: pb.GenerateRequest, limits: Limits, *, told: bool
) -> Generation:
    """Check a request and compile what it asks for.

    Takes as long as tokenizer and constraint are allowed to. told: whether there is anybody to tell
    events to. Raises Refusal, INVALID_ARGUMENT that names the field.
    """
    strategy = admitted(request.strategy, limits)
    asked = kinds_of(request.events)
    kinds = asked if told else set()
    prompt = prompt_of(model, request, limits)
    check_length(model, prompt, strategy, limits)
    ready = prepared(strategy, model.vocabulary, limits)
    options = strategy.run_options()
    options["sampler"] = ready.sampler
    sequence = sequence_of(prompt, request.occurrence)
    start = _start(model, prompt, ready, sequence)
    check_length(model, start.prompt, strategy, limits)
    try:
        smc = SMC(
            start.matcher,
            sequence=sequence,
            begun=start.begun,
            log_weight=start.log_weight,
            **options,
        )
    except InputError as error:
        raise invalid(error, f"{FIELD}.limits") from None
    healed = None if strategy.healing is None else start.healed
    return Generation(model, start.prompt, ready, smc, kinds, healed)


def _start(
    model: ServedModel, prompt: Sequence[int], ready: Prepared, sequence: int
) -> HealedStart:
    """Behind the prompt, or with its end drawn again: a forward or two before the run."""
    strategy = ready.strategy
    if strategy.healing is None:
        return unhealed_start(prompt, ready.matcher)
    healer = model.bytes.healer(strategy.healing.target, strategy.build_law())
    return healed_start(healer, prompt, ready.matcher, seed=strategy.seed, sequence=sequence)


def _kinds_error(got: str) -> Exception:
    accepted = "EVENT_KIND_TOKENS, EVENT_KIND_RESAMPLINGS, both, neither, or EVENT_KIND_NONE alone"
    return refused("events", got, accepted)


def kinds_of(events: Sequence[int]) -> set[int]:
    """The kinds of events that a request asks for: all where it names none."""
    if not events:
        return set(_KINDS)
    kinds = set(events)
    if kinds == {pb.EVENT_KIND_NONE}:
        return set()
    if not kinds <= set(_KINDS):
        raise _kinds_error(", ".join(map(str, sorted(kinds))))
    return kinds


def prompt_of(model: Served, request: pb.GenerateRequest, limits: Limits) -> list[int]:
    """The ids of the prompt."""
    kind = request.WhichOneof("prompt")
    if kind == "text":
        size = len(request.text.encode())
        if size > limits.prompt_bytes:
            raise refused("text", f"{size} bytes", f"at most {limits.prompt_bytes} bytes")
        ids = model.encode(request.text)
    elif kind == "token_ids":
        ids = list(request.token_ids.ids)
        most = len(model.vocabulary) - 1
        if ids and max(ids) > most:
            raise refused("token_ids.ids", str(max(ids)), f"ids from 0 to {most}")
    else:
        raise refused("prompt", "none", "text, or token_ids")
    if not ids:
        raise refused(kind, "no token", "a prompt of at least one token")
    return ids


def check_length(model: Served, prompt: Sequence[int], strategy: Strategy, limits: Limits) -> None:
    """Prompt and generated tokens must be what the model takes."""
    most = min(limits.prompt_tokens, model.max_tokens - 1)
    if len(prompt) > most:
        raise refused("prompt", f"{len(prompt)} tokens", f"at most {most} tokens")
    new, left = strategy.limits.max_new_tokens, model.max_tokens - len(prompt)
    if new > left:
        got = f"{new} after a prompt of {len(prompt)} tokens"
        accepted = f"at most {left}: the model takes {model.max_tokens} tokens in all"
        raise refused(f"{FIELD}.limits.max_new_tokens", got, accepted)


def _token(particle: Particle, position: int, text: int) -> pb.ParticleToken:
    """What a particle drew. position, text: how many tokens and bytes it had before."""
    grown = len(particle.token_ids) > position
    return pb.ParticleToken(
        particle=particle.index,
        token=particle.token_ids[-1] if grown else NO_TOKEN,
        text=particle.text_bytes[text:],
        log_weight=particle.log_weight,
        status=STATUSES[particle.status],
    )
