"""The result of `midstream bytes`, for people, for programs, and as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from midstream.adapters.cli.output import number
from midstream.kernels.next_byte import ENDS
from midstream.middleware.bytes.law import ByteLaw
from midstream.middleware.bytes.scoring import TextReport
from midstream.middleware.errors import InputError

_SHOWN = 120  # bytes of a picture that are named below it


def byte_name(byte: int) -> str:
    """How a byte, or the end, is shown."""
    if byte == ENDS:
        return "end"
    return repr(chr(byte)) if 32 <= byte < 127 else f"0x{byte:02x}"


def as_json(law: ByteLaw, report: TextReport, undecided: str | None) -> str:
    """One JSON object on one line. `next` has 257 probabilities, the last that of the end."""
    value: dict[str, Any] = {
        "bytes": len(report.text),
        "next": [float(p) for p in law.p],
        "log_mass": number(law.log_mass),
        "log_pruned": number(law.log_pruned),
        "log_p": number(report.log_p),
        "bits_per_byte": number(report.bits_per_byte),
        "bits_per_byte_prefix": number(report.bits_per_byte_prefix),
        "bits_per_byte_tokens": _maybe(report.bits_per_byte_tokens),
        "surprise_bits": [number(float(bits)) for bits in surprise(report)],
        "tokens": report.tokens,
        "rows": report.rows,
        "target": law.target,
        "method": law.method,
        "status": law.status,
        "undecided": undecided,
    }
    return json.dumps(value, allow_nan=False)


def surprise(report: TextReport) -> Any:
    """Bits of each byte by the law of the next byte: float64 [n]."""
    return -report.log_p_bytes / math.log(2.0) + 0.0


def page(law: ByteLaw, report: TextReport, undecided: str | None, top: int) -> RenderableType:
    """The table of the next byte, and what the text costs."""
    lines: list[RenderableType] = []
    if law.status == "dead":
        lines.append("no token string covers the text: probability 0")
    else:
        lines.append(_table(law, top))
    lines.append("")
    if report.text:
        lines.extend(_costs(report))
    lines.append(Text(_method(law), "dim"))
    if undecided is not None:
        lines.append(Text(f"not canonical: {undecided}", "dim"))
    return Group(*lines)


def write_plot(report: TextReport, path: Path) -> None:
    """Bits of each byte as bars, with the means. InputError where the file cannot be written."""
    from matplotlib.figure import Figure

    bits = np.asarray(surprise(report))
    figure = Figure(figsize=(min(max(6.0, 0.12 * bits.size), 40.0), 3.6), layout="constrained")
    axis = figure.subplots()
    finite = np.where(np.isfinite(bits), bits, 0.0)
    axis.bar(range(bits.size), finite, 1.0, color="tab:orange")
    for value, name, style in (
        (report.bits_per_byte, "by bytes", "-"),
        (report.bits_per_byte_tokens, "by tokens", ":"),
    ):
        if value is not None and math.isfinite(value):
            axis.axhline(value, color="0.25", linestyle=style, label=f"{name}: {value:.3f}")
    if 0 < bits.size <= _SHOWN:
        names = [byte_name(byte).strip("'") for byte in report.text]
        axis.set_xticks(range(bits.size), [n.replace("$", r"\$") for n in names], fontsize=7)
    axis.set_ylabel("bits")
    axis.set_title("surprise of each byte", fontsize=10, loc="left")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        accepted = "a file that can be written"
        raise InputError("--plot", f"{path} ({error.strerror})", accepted) from None


def _table(law: ByteLaw, top: int) -> Table:
    table = Table(pad_edge=False, box=None, header_style="dim")
    table.add_column("byte")
    table.add_column("p", justify="right")
    table.add_column("bits", justify="right")
    order = np.argsort(-law.p, kind="stable")[:top].tolist()
    for byte in order:
        if law.p[byte] > 0:
            bits = -law.log_p[byte] / math.log(2.0) + 0.0
            table.add_row(Text(byte_name(byte)), f"{law.p[byte]:.4g}", f"{bits:.2f}")
    return table


def _costs(report: TextReport) -> list[RenderableType]:
    if report.log_p == -math.inf:
        return ["bits per byte: infinite, since nothing covers the text"]
    tokens = report.bits_per_byte_tokens
    shown = "not known" if tokens is None else f"{tokens:.4f} ({report.tokens} tokens)"
    return [
        f"{len(report.text)} bytes, log P {report.log_p:.3f} nats, {report.rows} tokens read",
        f"bits per byte: stepwise {report.bits_per_byte:.4f}, "
        f"prefix {report.bits_per_byte_prefix:.4f}, tokens {shown}",
    ]


def _method(law: ByteLaw) -> str:
    if law.method == "cover":
        return "target canonical: the whole cover; log P is a lower bound over all token strings"
    left = f"at most e^{law.log_pruned:.2f}" if law.log_pruned > -math.inf else "nothing"
    return f"target all: a beam of e^{law.log_mass:.2f} that left out {left}"


def _maybe(value: float | None) -> float | str | None:
    return None if value is None else number(value)
