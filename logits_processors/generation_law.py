"""Whether what `generate()` was asked for and what a processor samples are the same law."""

from __future__ import annotations

import dataclasses
from typing import Any

from midstream.logits_processors.generation_call import LAW_DEFAULTS, GenerationCall
from midstream.middleware.errors import StrategyError
from midstream.middleware.law import TRUNCATIONS, Law

OWN_WARPERS = frozenset(
    {
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
        "LogitNormalization",
    }
)
"""What transformers may apply after a token is forced: the law's own settings, which are compared
one by one, and a normalisation that changes no law."""

GREEDY = Law(temperature=0.0)


def law_in_force(law: Law, call: GenerationCall, processor: Any) -> Law:
    """The law that `processor` samples in a call of `generate()`.

    do_sample=False is greedy decoding. Otherwise the processor's own law, and whatever the call
    sets of it must be equal. Under beam search `generate()` decides and the processor has no law of
    its own. Raises StrategyError for a conflict, telling how to ask for each of the two.
    """
    _check_what_follows(call, processor)
    if call.beams:
        if law != Law():
            got = f"{_shown(law)} under num_beams={call.config.num_beams}"
            accepted = (
                "nothing: a processor only masks under beam search; give the law to generate()"
            )
            raise StrategyError("ConstrainedSampling", got, accepted)
        return law
    if not call.config.do_sample:
        return _greedy(law)
    for name, asked in call.law.items():
        own = getattr(law, name)
        if asked != own:
            got = f"{own} in ConstrainedSampling and {asked} in generate()"
            raise StrategyError(name, got, _how_to_ask(name, asked, own))
    return law


def _greedy(law: Law) -> Law:
    """The default temperature, 1, goes along with do_sample=False; another one was asked for."""
    if law.temperature in (0.0, 1.0):
        return dataclasses.replace(law, temperature=0.0)
    got = f"{law.temperature} in ConstrainedSampling and do_sample=False in generate()"
    raise StrategyError(
        "temperature", got, "do_sample=True to sample, temperature=0 for greedy decoding"
    )


def _how_to_ask(name: str, asked: float, own: float) -> str:
    truncation = "" if name == "temperature" else ", truncation=..."
    accepted = (
        f"equal ones. generate() applies its own after the token is drawn: for {asked} ask "
        f"ConstrainedSampling(..., {name}={asked}{truncation}), for {own} give "
        f"generate({name}={own})"
    )
    return f"{accepted}. truncation is {TRUNCATIONS}" if truncation else accepted


def _check_what_follows(call: GenerationCall, processor: Any) -> None:
    """What comes after the draw would have no effect on it."""
    if call.beams or not any(given is processor for given in call.processors):
        return
    place = next(i for i, given in enumerate(call.processors) if given is processor)
    for later in call.processors[place + 1 :]:
        name = type(later).__name__
        if name not in OWN_WARPERS:
            accepted = (
                "processors before ConstrainedSampling, which draws the token; typical_p, top_h, "
                "cutoffs and watermarks of generate() come after it and would have no effect"
            )
            raise StrategyError("logits_processor", f"{name} after ConstrainedSampling", accepted)


def _shown(law: Law) -> str:
    given = {name: getattr(law, name) for name in LAW_DEFAULTS}
    return ", ".join(
        f"{name}={value}" for name, value in given.items() if value != LAW_DEFAULTS[name]
    )
