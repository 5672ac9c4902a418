"""What a host cannot do of a strategy: one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from midstream.middleware.errors import StrategyError

if TYPE_CHECKING:
    from midstream.middleware.strategy import Strategy

HOSTS: Mapping[str, str] = {
    "transformers": "`smc.run` over `TransformersHost`, `generate(custom_generate=smc(...))`",
    "logits_processor": "`ConstrainedSampling` in `generate(...)`, the processor for Outlines",
    "sidecar": "`Decoding.Generate` of the gRPC sidecar",
    "sidecar_process": "`LogitsProcessing.Process` of the gRPC sidecar",
    "vllm": "`ConstrainedSampling` inside vLLM; particles by `VllmHost`, `VllmServerHost`",
}
"""The hosts by name, and what each name stands for."""


@dataclass(frozen=True, slots=True)
class CannotDo:
    """One combination that some hosts cannot do.

    field: the path in the strategy. what: the value, in words. why: the reason. instead: what is
    accepted. applies: whether a strategy asks for it.
    """

    hosts: tuple[str, ...]
    field: str
    what: str
    why: str
    instead: str
    applies: Callable[[Strategy], bool]


def _awrs_after_mask(strategy: Strategy) -> bool:
    law = strategy.build_law()
    named = not isinstance(strategy.sampler, str)
    return named and law.truncates and law.truncation == "after_mask"


CANNOT: tuple[CannotDo, ...] = (
    CannotDo(
        hosts=tuple(HOSTS),
        field="law.truncation",
        what='"after_mask" with the sampler `awrs`',
        why="rejection never sees the whole mask that truncation would follow",
        instead='"target", or the sampler "mask"',
        applies=_awrs_after_mask,
    ),
    CannotDo(
        hosts=("transformers", "sidecar"),
        field="law.temperature",
        what="0",
        why="particles are draws, not a search",
        instead="above 0, or greedy decoding by `ConstrainedSampling` or one row of `Process`",
        applies=lambda strategy: strategy.law.temperature == 0,
    ),
    CannotDo(
        hosts=("logits_processor",),
        field="smc.particles",
        what="more than 1",
        why="a logits processor cannot make one row of the cache go on from another",
        instead='1, or the host "transformers"',
        applies=lambda strategy: strategy.smc.particles > 1,
    ),
    CannotDo(
        hosts=("logits_processor", "sidecar_process", "vllm"),
        field="healing",
        what="an object",
        why="the prompt has been read when a processor is first asked",
        instead="`TokenHealing.prepare`, or `Bytes.Heal` of the sidecar and its ids as the prompt",
        applies=lambda strategy: strategy.healing is not None,
    ),
)
"""Everything that is refused, on every host."""


def check_host(strategy: Strategy, host: str) -> None:
    """StrategyError for the first row of the table that forbids the strategy on a host."""
    if host not in HOSTS:
        raise StrategyError("host", host, "one of " + ", ".join(HOSTS))
    for row in CANNOT:
        if host in row.hosts and row.applies(strategy):
            got = f"{row.what}, which the host {host} cannot do: {row.why}"
            raise StrategyError(row.field, got, row.instead)


def table() -> str:
    """The table as markdown, as docs/strategy.md shows it."""
    lines = [
        "| field | value | " + " | ".join(f"`{host}`" for host in HOSTS) + " | why | instead |",
        "|---|---|" + "---|" * len(HOSTS) + "---|---|",
    ]
    for row in CANNOT:
        marks = " | ".join("no" if host in row.hosts else "yes" for host in HOSTS)
        lines.append(f"| `{row.field}` | {row.what} | {marks} | {row.why} | {row.instead} |")
    return "\n".join(lines)
