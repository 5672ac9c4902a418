"""Where a run of particles begins behind a healed prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from midstream.middleware.bytes.beyond import AnyIds, starts_at
from midstream.middleware.bytes.healing import Healed, Healer, stays
from midstream.middleware.matcher import Matcher


@dataclass(frozen=True, slots=True)
class HealedStart:
    """Arguments of `smc.run` behind a healed prompt.

    healed: the draw, which all particles share. prompt: for `Host.start`. matcher: that begins
        behind the overshoot; one that allows nothing where the draw is dead.
    `begun=healed.overshoot` and `log_weight=healed.log_weight` are the other arguments: the
    evidence then is of the constraint, given that the text begins with the prompt's bytes.
    """

    healed: Healed
    prompt: Sequence[int]
    matcher: Matcher

    @property
    def begun(self) -> bytes:
        """What the prompt's last token has written of the answer."""
        return self.healed.overshoot

    @property
    def log_weight(self) -> float:
        """Of the draw."""
        return self.healed.log_weight


def healed_start(
    healer: Healer, prompt: Sequence[int], matcher: Matcher, *, seed: int, sequence: int
) -> HealedStart:
    """Heal a prompt for a run under a constraint. Raises InputError as `Healer.heal` does."""
    (healed,) = healer.heal([prompt], seed=seed, sequences=[sequence], matchers=[matcher])
    if healed.status == "dead":
        return HealedStart(healed, prompt, starts_at(AnyIds(matcher.vocabulary), False))
    return HealedStart(healed, healed.token_ids, starts_at(matcher, healed.state))


def unhealed_start(prompt: Sequence[int], matcher: Matcher) -> HealedStart:
    """The start behind a prompt as it came."""
    return HealedStart(stays(prompt, "off", matcher.start()), prompt, matcher)
