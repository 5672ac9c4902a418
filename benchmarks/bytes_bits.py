"""Bits per byte of held-out text, beside the peer."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.bytes_bench import Bench
from benchmarks.report import Cell, Table
from midstream.middleware.bytes import ByteModel

Float = npt.NDArray[np.float64]


def bits_table(bench: Bench, texts: Sequence[bytes], title: str) -> Table:
    """Bits per byte of held-out texts, and the speed of the whole score."""
    length = statistics.fmean(map(len, texts))
    rows: list[list[Cell]] = []
    reports = [bench.canonical.report(text) for text in texts]
    best = [report.bits_per_byte for report in reports]
    begin = bench.now()
    for text in texts:
        bench.canonical.report(text)
    taken = (bench.now() - begin) / len(texts)
    per_byte = statistics.fmean(r.rows / len(r.text) for r in reports)
    tokens = [r.bits_per_byte_tokens or 0.0 for r in reports]
    rows.append(["token level", statistics.fmean(tokens), "", "", ""])
    mean = statistics.fmean(best)
    rows.append(["ours, canonical (stepwise)", mean, "", per_byte, length / taken])
    whole = statistics.fmean(r.bits_per_byte_prefix for r in reports)
    rows.append(["ours, canonical (prefix)", whole, "", per_byte, length / taken])
    ways: dict[str, Callable[[bytes], tuple[float, int]]] = {
        f"ours, all, {name}": lambda text, m=model: _reported(m, text)  # type: ignore[misc]
        for name, model in bench.beams.items()
    }
    counter = RowCounter(bench.made.model)
    ways |= {
        f"genlm-bytes, {name}": lambda text, p=peer: (  # type: ignore[misc]
            counter.of(lambda: _bits(p.score(text)))
        )
        for name, peer in bench.peers.items()
    }
    for name, way in ways.items():
        begin = bench.now()
        answers = [way(text) for text in texts]
        taken = (bench.now() - begin) / len(texts)
        found = [bits for bits, _ in answers]
        lower = f"{sum(b <= f + 1e-9 for b, f in zip(best, found, strict=True))} of {len(texts)}"
        per_byte = sum(count for _, count in answers) / sum(map(len, texts))
        rows.append([name, statistics.fmean(found), lower, per_byte, length / taken])
    columns = ["method", "bits a byte", "canonical no higher", "rows a byte", "bytes a second"]
    return Table(title, columns, _fine(rows))


class RowCounter:
    """Counts the token strings that the peer's model is given: its answers from memory are not in
    them.
    """

    def __init__(self, model: Any) -> None:
        self._rows = 0
        forward = model.forward

        @functools.wraps(forward)  # hosts read its signature
        def counted(*arguments: Any, **options: Any) -> Any:
            ids = arguments[0] if arguments else options["input_ids"]
            self._rows += ids.shape[0]
            return forward(*arguments, **options)

        model.forward = counted

    def of(self, score: Callable[[], float]) -> tuple[float, int]:
        """A score, and how many rows it took."""
        before = self._rows
        return score(), self._rows - before


def _reported(model: ByteModel, text: bytes) -> tuple[float, int]:
    """Bits a byte, and how many tokens were read for it."""
    report = model.report(text)
    return report.bits_per_byte, report.rows


def _bits(log_p: Float) -> float:
    return float(-log_p.sum() / (len(log_p) * np.log(2.0)))


def _fine(rows: Sequence[list[Cell]]) -> list[list[Cell]]:
    """Bits with five digits behind the point."""
    return [[row[0], f"{row[1]:.5f}", *row[2:]] for row in rows]
