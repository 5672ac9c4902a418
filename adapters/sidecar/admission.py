"""A strategy from the wire: read, within the server's bounds, and ready to draw."""

from __future__ import annotations

from dataclasses import dataclass

from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.wire.errors import invalid, refused
from midstream.adapters.sidecar.wire.strategy import strategy_from
from midstream.middleware.errors import ConstraintError, InputError, StrategyError
from midstream.middleware.matcher import Matcher
from midstream.middleware.sampling import AWRS, Auto, Mask
from midstream.middleware.strategy import AwrsSampler, Strategy
from midstream.middleware.strategy_constraint import KINDS
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import strategy_pb2 as pb

FIELD = "strategy"
"""What requests call it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A strategy compiled for a vocabulary.

    sampler: the one that draws, with a finite budget of rejects. name: "mask" or "awrs".
    reason: why that one.
    """

    strategy: Strategy
    matcher: Matcher
    sampler: Mask | AWRS
    name: str
    reason: str


def admitted(message: pb.Strategy, limits: Limits, host: str = "sidecar") -> Strategy:
    """The strategy of a request.

    host: "sidecar" or "sidecar_process" (see `midstream.middleware.strategy_hosts`).
    Raises Refusal, INVALID_ARGUMENT that names the field, for what is no strategy, what this host
    cannot do, and what is beyond the server's bounds.
    """
    try:
        strategy = strategy_from(message)
    except InputError as error:
        raise invalid(error, FIELD) from None
    try:
        strategy.validate_for(host)
    except StrategyError as error:  # in words of our own table
        raise refused(f"{FIELD}.{error.argument}", str(error.got), error.accepted) from None
    _check_bounds(strategy, limits)
    return strategy


def _check_bounds(strategy: Strategy, limits: Limits) -> None:
    for field, value, most in (
        ("smc.particles", strategy.smc.particles, limits.particles),
        ("limits.max_new_tokens", strategy.limits.max_new_tokens, limits.max_new_tokens),
    ):
        if value > most:
            raise refused(f"{FIELD}.{field}", str(value), f"at most {most} on this server")
    if isinstance(strategy.sampler, AwrsSampler):
        rejects, most = strategy.sampler.awrs.rejects, limits.rejects
        if rejects is None or rejects > most:
            got = "no limit" if rejects is None else str(rejects)
            accepted = f"a number, at most {most}: a request must not draw without end"
            raise refused(f"{FIELD}.sampler.awrs.rejects", got, accepted)


def prepared(strategy: Strategy, vocabulary: Vocabulary, limits: Limits) -> Prepared:
    """Compile an admitted strategy. Takes as long as the constraint's limits allow.

    Raises Refusal, INVALID_ARGUMENT, where the constraint does not compile or the sampler cannot
    serve it.
    """
    try:
        matcher = strategy.build_constraint().compile(vocabulary)
    except ConstraintError as error:  # its argument is Python's: pattern, schema, lark
        field = f"{FIELD}.constraint.{_kind(strategy)}"
        raise invalid(ConstraintError(field, error.got, error.accepted)) from None
    if isinstance(strategy.sampler, AwrsSampler):
        return Prepared(strategy, matcher, strategy.sampler.awrs.build(), "awrs", "as asked")
    if strategy.sampler == "mask":
        if not matcher.has_mask:
            got = "mask, for a constraint without a mask"
            raise refused(f"{FIELD}.sampler", got, "auto, or awrs")
        return Prepared(strategy, matcher, Mask(), "mask", "as asked")
    sampler, reason = Auto(AWRS(rejects=limits.rejects)).choice(matcher)
    if isinstance(sampler, Mask):
        return Prepared(strategy, matcher, sampler, "mask", reason)
    law = strategy.build_law()
    if law.truncates and law.truncation == "after_mask":
        got = f"after_mask with the sampler awrs, taken because {reason}"
        raise refused(f"{FIELD}.law.truncation", got, "target, or the sampler mask")
    return Prepared(strategy, matcher, sampler, "awrs", reason)


def _kind(strategy: Strategy) -> str:
    """The field that the constraint lies in."""
    return next(kind for kind, data in KINDS.items() if isinstance(strategy.constraint, data))
