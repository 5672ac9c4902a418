"""What every benchmark prints: the machine, its tables, and the same as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.timing import CLOCKS

Cell = str | float | int


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a heading."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def text(self) -> str:
        """As a Markdown table, so that it can be pasted into a page of findings."""
        cells = [list(self.columns), *([_shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
        lines.insert(1, "-|-".join("-" * width for width in widths))
        return f"{self.title}\n\n" + "\n".join(f"| {line} |" for line in lines).replace("| -", "|-")


def _shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:,.0f}"
    return str(cell)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    clocks = "by the clock on the wall, or by the time this thread had a core"
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help=clocks)
    parser.add_argument("--quick", action="store_true", help="few repetitions: a smoke test")
    return parser


def machine() -> dict[str, Cell]:
    """Where the numbers come from; the load tells how far they can be trusted."""
    names = ("midstream", "numpy", "torch", "genlm-control", "genlm-bytes")
    versions = {name: _version(name) for name in names}
    load = os.getloadavg()
    return {
        "python": platform.python_version(),
        **versions,
        "cpu": platform.machine(),
        "cores": os.cpu_count() or 0,
        "load_1_minute": round(load[0], 2),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def show(tables: Sequence[Table], *, as_json: bool) -> None:
    """Print tables, with the machine before them."""
    if as_json:
        found = [dataclasses.asdict(table) for table in tables]
        print(json.dumps({"machine": machine(), "tables": found}))
        return
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    for table in tables:
        print("\n" + table.text())
