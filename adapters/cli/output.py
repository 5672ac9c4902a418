"""The result of `midstream generate`, for people and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from midstream.adapters.cli.terminal import printable
from midstream.middleware.particles import Particle, SMCResult


def number(value: float) -> float | str:
    """A float as JSON, which knows no infinities: "-Infinity" or "NaN", as protobuf writes them."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def as_json(result: SMCResult, *, sampler: str, seed: int) -> str:
    """One JSON object on one line."""
    particles: list[dict[str, Any]] = [
        {
            "text": particle.text,
            "token_ids": [int(token) for token in particle.token_ids],
            "log_weight": number(particle.log_weight),
            "status": particle.status,
        }
        for particle in result.particles
    ]
    value = {
        "particles": particles,
        "log_evidence": number(result.log_evidence),
        "sampler": sampler,
        "seed": seed,
    }
    return json.dumps(value, allow_nan=False)


def page(result: SMCResult, *, sampler: str, reason: str, seed: int) -> RenderableType:
    """A table of the particles, the heaviest first, and what the weights say."""
    table = Table(pad_edge=False, box=None, header_style="dim")
    table.add_column("text", overflow="fold")
    table.add_column("share", justify="right")
    table.add_column("log weight", justify="right")
    table.add_column("status")
    order = sorted(result.particles, key=lambda p: (p.status != "finished", -p.log_weight))
    for particle, share in zip(order, _shares(order), strict=True):
        status = f"{particle.status}: {particle.reason}" if particle.reason else particle.status
        table.add_row(
            Text(printable(particle.text)),
            "" if share is None else f"{share:.1%}",
            _log(particle.log_weight),
            Text(status),
        )
    lines: list[RenderableType] = [table, "", _evidence(result)]
    if not result.proper:
        lines.append("truncation after the mask: the weights are not proper for any law")
    lines.append(Text(f"sampler {sampler}: {reason}; seed {seed}", "dim"))
    return Group(*lines)


def _shares(order: Sequence[Particle]) -> list[float | None]:
    """Each finished particle's share of the weight; None for the others, which have none."""
    done = [p.log_weight for p in order if p.status == "finished" and p.log_weight > -math.inf]
    if not done:
        return [None] * len(order)
    top = max(done)
    total = sum(math.exp(weight - top) for weight in done)
    return [math.exp(p.log_weight - top) / total if p.status == "finished" else None for p in order]


def _evidence(result: SMCResult) -> Text:
    if result.log_evidence == -math.inf:
        return Text("evidence 0: no particle ended as the constraint wants within the limit")
    value = f"{math.exp(result.log_evidence):.3g} (log {_log(result.log_evidence)})"
    return Text(
        f"evidence {value}: the estimated probability that the model's own text satisfies the "
        "constraint and ends within the limit"
    )


def _log(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # + 0.0 takes the sign off a zero


def show(renderable: RenderableType) -> None:
    """Print to stdout."""
    Console(highlight=False).print(renderable, markup=False)
