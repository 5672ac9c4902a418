"""One particle step of adaptive weighted rejection sampling, ours beside the peer's on the same row
and condition.

A row of 128,256 float32 logits, a black-box check that is a look-up in a table, four accepts on
both sides.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from typing import Any

from benchmarks.peer import awrs_on_row
from benchmarks.report import Table, arguments, show
from benchmarks.rows import TableMatcher, row_with_mass, vocabulary_of
from benchmarks.timing import ratio, take_turns
from midstream.middleware.random import Stream
from midstream.middleware.sampling import AWRS

SIZE = 128_256
ACCEPTS = 4
TARGETS = {0.5: "18x", 0.1: "8x", 0.01: "10x", 1e-3: "reported"}


def measure(mass: float, *, spread: float, rounds: int, block: int, clock: str) -> list[Any]:
    """One line of the table."""
    logits, valid = row_with_mass(SIZE, mass, spread=spread, seed=1)
    matcher = TableMatcher(vocabulary_of(SIZE), valid)
    sampler = AWRS(accepts=ACCEPTS)
    peer = awrs_on_row(logits, valid, accepts=ACCEPTS, seed=1)
    loop = asyncio.new_event_loop()
    weights: dict[str, list[float]] = {"ours": [], "theirs": []}
    checks: list[int] = []

    def ours(seed: int) -> None:
        draw = sampler.draw(logits, matcher, 0, Stream(seed))
        weights["ours"].append(math.exp(draw.log_weight))
        checks.append(draw.checks)

    def theirs(_: int) -> None:
        _token, log_weight, _ = loop.run_until_complete(peer.sample([]))
        weights["theirs"].append(math.exp(log_weight))

    both = {"ours": ours, "theirs": theirs}
    taken = take_turns(both, rounds=rounds, block=block, clock=clock)
    loop.close()
    return [
        mass,
        spread,
        taken["ours"].median_us,
        taken["theirs"].median_us,
        str(ratio(taken["theirs"], taken["ours"])),
        TARGETS[mass],
        statistics.fmean(checks),
        statistics.fmean(weights["ours"]) / mass,
        statistics.fmean(weights["theirs"]) / mass,
    ]


def main() -> None:
    """Run from the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="pairs of blocks a line")
    parser.add_argument("--block", type=int, default=8, help="steps a block")
    options = parser.parse_args()
    rounds, block = (4, 2) if options.quick else (options.rounds, options.block)
    rows = [
        measure(mass, spread=spread, rounds=rounds, block=block, clock=options.clock)
        for spread in (1.0, 4.0)
        for mass in TARGETS
    ]
    columns = [
        "Z",
        "spread of the logits",
        "ours us",
        "genlm-control us",
        "ratio (middle half of pairs)",
        "target",
        "our checks",
        "our mean w / Z",
        "their mean w / Z",
    ]
    title = f"One AWRS particle step, V = {SIZE}, {ACCEPTS} accepts, check by table"
    show([Table(title, columns, rows)], as_json=options.json)


if __name__ == "__main__":
    main()
