"""The measurements as text for a terminal, and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from midstream.adapters.demo.measure import Measured, TextLaw

SHOWN = 6
"""Answers that a table shows; the rest are summed up."""

BAR_CELLS = 36

INTRODUCTION = """\
A language model is asked a question whose answer must satisfy a constraint. The right law of the \
answers is the model's own, given that the constraint holds: what is left of very many free \
samples when all others are thrown away. Three ways to sample are held against it."""

WAYS = {
    "unconstrained": "the model as it is; most answers break the constraint",
    "masked": "masked decoding: at each step all tokens that break the constraint are forbidden, "
    "which is what is usually called structured output",
    "AWRS-SMC": "midstream: adaptive weighted rejection draws the tokens, sequential Monte Carlo "
    "moves the particles by their weights",
}

CALLS = """\
Masked decoding and AWRS-SMC were calls of a client to a sidecar on a Unix socket, but for the \
Python function: no server takes code."""

EXPLANATION = """\
Why masking is wrong: a mask sees one token ahead. It lets the model begin as it likes best, also \
where the constraint will later rule out nearly all that such a beginning leads to, and then \
forces the rest. The answer obeys, but the model would hardly ever have given it.

How the weights put it right: each step also tells how much of the model's probability the \
constraint left. The product of these shares is the weight, so an answer that had to be forced \
weighs next to nothing. Particles of low weight make way for copies of those of high weight, and \
the weighted answers follow the true law. The mean weight, the evidence, estimates how probable \
it is that the constraint holds at all: compare it with the share of free samples that were kept."""


def page(results: Sequence[Measured], *, ascii_only: bool) -> RenderableType:
    """The whole report."""
    ways = Table.grid(padding=(0, 2))
    for name, what in WAYS.items():
        ways.add_row(Text(name, "bold"), Text(what))
    parts: list[RenderableType] = [Text(INTRODUCTION), "", ways, "", Text(CALLS), ""]
    for number, measured in enumerate(results, start=1):
        parts += [*_section(number, measured, ascii_only=ascii_only), ""]
    return Group(*parts, Text(EXPLANATION))


def _section(number: int, measured: Measured, *, ascii_only: bool) -> list[RenderableType]:
    task = measured.task
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("prompt", task.prompt.strip()),
        ("wanted", task.wanted),
        (
            "truth",
            f"{measured.accepted:,} of {measured.samples:,} free samples satisfy it "
            f"({measured.acceptance:.1%}); by their number, their law is about "
            f"{measured.reference_error:.3f} from the exact one",
        ),
        ("evidence", f"{measured.evidence:.1%}, by the weights of AWRS-SMC"),
    ):
        facts.add_row(Text(name, style="dim"), Text(value))
    return [
        Text(f"{number}. {task.name}", style="bold"),
        facts,
        "",
        _answers(measured),
        "",
        _distances(measured, ascii_only=ascii_only),
    ]


def _answers(measured: Measured) -> Table:
    laws: list[TextLaw] = [measured.reference, *(method.law for method in measured.methods)]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("answer", overflow="fold")
    for name in ("truth", *(method.name for method in measured.methods)):
        table.add_column(name, justify="right")
    answers = accepted_answers(measured)
    shown = top_answers(measured, SHOWN)
    for text in shown:
        table.add_row(Text(text), *(f"{law.get(text, 0.0):.1%}" for law in laws))
    others = [text for text in answers if text not in shown]
    if others:
        sums = [sum(law.get(text, 0.0) for text in others) for law in laws]
        table.add_row(Text(f"{len(others)} others", "dim"), *(f"{share:.1%}" for share in sums))
    rest = [1.0 - sum(law.get(text, 0.0) for text in answers) for law in laws]
    table.add_row(Text("not as wanted", "dim"), *(f"{abs(share):.1%}" for share in rest))
    return table


def accepted_answers(measured: Measured) -> dict[str, float]:
    """Every answer that came up and satisfies the constraint, with its greatest share anywhere."""
    shares: dict[str, float] = {}
    for law in (measured.reference, *(method.law for method in measured.methods)):
        for text, share in law.items():
            if measured.task.accepts(text):
                shares[text] = max(share, shares.get(text, 0.0))
    return shares


def top_answers(measured: Measured, count: int) -> list[str]:
    """The answers with the greatest shares, in the order of the truth."""
    shares = accepted_answers(measured)
    chosen = sorted(shares, key=lambda text: (-shares[text], text))[:count]
    return sorted(chosen, key=lambda text: (-measured.reference.get(text, 0.0), text))


def _distances(measured: Measured, *, ascii_only: bool) -> Table:
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
    table.add_column("distance from the truth")
    table.add_column("0 = equal, 1 = nothing in common")
    table.add_column("", justify="right")
    styles = ("yellow", "red", "green")
    for method, style in zip(measured.methods, styles, strict=True):
        table.add_row(
            method.name, Text(_bar(method.distance, ascii_only), style), f"{method.distance:.3f}"
        )
    exact = f"exact, {measured.particles:,} texts"
    bar = Text(_bar(measured.chance, ascii_only), "dim")
    table.add_row(Text(exact, "dim"), bar, Text(f"{measured.chance:.3f}", "dim"))
    return table


def _bar(share: float, ascii_only: bool) -> str:
    mark = "#" if ascii_only else "\N{FULL BLOCK}"
    cells = round(share * BAR_CELLS)
    return mark * cells if cells or ascii_only else "\N{LEFT ONE EIGHTH BLOCK}"


def data(results: Sequence[Measured], *, seed: int, seconds: float) -> dict[str, Any]:
    """The measurements as one JSON object."""
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "tasks": [
            {
                "name": measured.task.name,
                "prompt": measured.task.prompt,
                "wanted": measured.task.wanted,
                "free_samples": measured.samples,
                "accepted": measured.accepted,
                "reference": dict(measured.reference),
                "reference_error": measured.reference_error,
                "particles": measured.particles,
                "chance_distance": measured.chance,
                "evidence": measured.evidence,
                "distances": {method.name: method.distance for method in measured.methods},
                "laws": {
                    method.name: {
                        text: method.law.get(text, 0.0) for text in accepted_answers(measured)
                    }
                    for method in measured.methods
                },
            }
            for measured in results
        ],
    }
