"""Cost curves: by the size of the vocabulary, by the number of particles, by the length of the
text.

By V: one draw from a row. By N and by length: a step of our SMC on a model that is a table, without
the time that the table takes.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.json_check import SCHEMA, document, walk
from benchmarks.peer import awrs_on_row
from benchmarks.report import Cell, Table, arguments, show
from benchmarks.rows import Float32, TableMatcher, row_with_mass, vocabulary_of
from benchmarks.timing import CLOCKS, no_collection, take_turns
from benchmarks.tiny_model import make_tokenizer
from midstream.middleware import smc
from midstream.middleware.constraints.json_schema import JsonSchema
from midstream.middleware.constraints.regex import Regex
from midstream.middleware.matcher import Matcher
from midstream.middleware.random import Stream
from midstream.middleware.sampling import AWRS, Mask, Sampler
from midstream.middleware.vocabulary import Vocabulary

SIZES = (1_000, 4_096, 16_384, 65_536, 131_072, 262_144)
PARTICLES = (1, 4, 16, 64, 256)
LENGTHS = (50, 200, 800, 2_000)
MASS = 0.1
VOCABULARY = 4_096
STEPS = 12


def by_size(*, rounds: int, clock: str, sizes: Sequence[int]) -> Table:
    """One draw at each V; a tenth of the mass is valid."""
    rows: list[list[Cell]] = []
    loop = asyncio.new_event_loop()
    for size in sizes:
        logits, valid = row_with_mass(size, MASS, spread=1.0, seed=1)
        matcher = TableMatcher(vocabulary_of(size), valid, has_mask=True)
        peer = awrs_on_row(logits, valid, accepts=4, seed=1)
        works = {
            "mask": functools.partial(_draw, Mask(), matcher, logits),
            "awrs": functools.partial(_draw, AWRS(), matcher, logits),
            "peer": functools.partial(_draw_of_peer, loop, peer),
        }
        taken = take_turns(works, rounds=rounds, block=4, clock=clock)
        rows.append([size, *(taken[name].median_us for name in works)])
    loop.close()
    columns = ["V", "our mask us", "our AWRS us", "genlm-control AWRS us"]
    return Table(f"One draw by V, Z = {MASS}, 4 accepts", columns, rows)


def _draw(sampler: Sampler, matcher: Matcher, logits: Float32, seed: int) -> None:
    sampler.draw(logits, matcher, 0, Stream(seed))


def _draw_of_peer(loop: asyncio.AbstractEventLoop, peer: Any, _: int) -> None:
    loop.run_until_complete(peer.sample([]))


class TableRows:
    """Rows of a model that is a table: what comes next depends on the last token alone.

    seconds: how long making the rows took, to be subtracted.
    """

    def __init__(self, table: npt.NDArray[np.float32], clock: str) -> None:
        self.table = table
        self.now = CLOCKS[clock]
        self.seconds = 0.0
        self.logits = table[:1]

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> TableRows:
        """The rows of the last tokens."""
        begin = self.now()
        self.logits = self.table[np.asarray(tokens) % len(self.table)]
        self.seconds += self.now() - begin
        return self


def smc_step_us(
    matcher: Matcher, sampler: Sampler, *, particles: int, steps: int, rounds: int, clock: str
) -> float:
    """Microseconds for one particle and step, the middle of a few runs."""
    rng = np.random.default_rng(5)
    table = rng.normal(0.0, 1.0, (64, VOCABULARY)).astype(np.float32)
    now, found = CLOCKS[clock], []
    with no_collection():
        for seed in range(rounds + 1):
            rows = TableRows(table, clock)
            begin = now()
            result = smc.run(
                rows,
                matcher,
                particles=particles,
                max_new_tokens=steps,
                seed=seed,
                sampler=sampler,
            )
            spent = now() - begin - rows.seconds
            found.append(1e6 * spent / sum(len(p.token_ids) for p in result.particles))
    return float(np.median(found[1:]))


def by_particles(vocabulary: Vocabulary, *, rounds: int, clock: str) -> Table:
    """Steps of SMC under a loose regular expression and under a JSON Schema."""
    words = Regex(r"[a-zA-Z ]{200,}[.]").compile(vocabulary)
    schema = JsonSchema(SCHEMA).compile(vocabulary)
    rows: list[list[Cell]] = []
    for particles in PARTICLES:
        cells: list[Cell] = [particles]
        for matcher, sampler in ((words, Mask()), (words, AWRS()), (schema, Mask())):
            us = smc_step_us(
                matcher, sampler, particles=particles, steps=STEPS, rounds=rounds, clock=clock
            )
            cells.append(us)
        rows.append(cells)
    columns = ["N", "regex, mask us", "regex, AWRS us", "JSON Schema, mask us"]
    return Table(f"SMC by N, for a particle and step, V = {VOCABULARY}", columns, rows)


def by_length(vocabulary: Vocabulary, tokenizer: Any, *, rounds: int, clock: str) -> Table:
    """A check after a text of each length, and SMC that goes on for so many tokens."""
    rows: list[list[Cell]] = []
    digits = [t for t, name in enumerate(vocabulary.token_bytes) if name.isalpha()][:32]
    words = Regex(r"[a-zA-Z ]*").compile(vocabulary)
    schema = JsonSchema(SCHEMA).compile(vocabulary)
    for length in LENGTHS:
        tokens = tokenizer.encode(document(3 * length))[:length]
        state = walk(schema, schema.start(), tokens)[-1]
        works = {"check": lambda i, s=state: schema.allows(s, [digits[i % 32]])}
        check = take_turns(works, rounds=rounds, block=32, clock=clock)["check"]
        us = smc_step_us(words, Mask(), particles=10, steps=length, rounds=2, clock=clock)
        rows.append([length, check.median_us, us])
    columns = ["tokens", "JSON Schema check us", "SMC us a particle and step"]
    return Table("By the length of the text, in tokens", columns, rows)


def plot(tables: Sequence[Table], path: Path) -> None:
    """A panel for each table, logarithmic both ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, table in zip(figure.subplots(1, len(tables)), tables, strict=True):
        for i, name in enumerate(table.columns[1:], start=1):
            axes.loglog(
                [row[0] for row in table.rows], [row[i] for row in table.rows], "o-", label=name
            )
        axes.set(title=table.title, xlabel=table.columns[0], ylabel="us")
        axes.grid(True, which="both", alpha=0.2)
        axes.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Run from the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="blocks of 4 draws a point")
    parser.add_argument("--plot", type=Path, help="write the curves to this file (.svg or .png)")
    options = parser.parse_args()
    rounds, sizes = (3, SIZES[:3]) if options.quick else (options.rounds, SIZES)
    tokenizer = make_tokenizer(VOCABULARY)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=[tokenizer.eos_token_id])
    few = max(rounds // 3, 1)
    tables = [
        by_size(rounds=rounds, clock=options.clock, sizes=sizes),
        by_particles(vocabulary, rounds=few, clock=options.clock),
        by_length(vocabulary, tokenizer, rounds=few, clock=options.clock),
    ]
    show(tables, as_json=options.json)
    if options.plot is not None:
        plot(tables, options.plot)


if __name__ == "__main__":
    main()
