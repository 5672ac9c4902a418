"""The measurements as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midstream.adapters.demo.measure import Measured
from midstream.adapters.demo.report import top_answers
from midstream.middleware.errors import InputError

COLOURS = ("0.25", "tab:orange", "tab:red", "tab:green")
ANSWERS = 6


def check_plot(path: Path) -> None:
    """InputError, before any work, where no picture could be written to `path`."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "--plot",
            "no matplotlib",
            "an installation with the extra: pip install 'midstream[plot]'",
        ) from None
    if path.suffix.lower() != ".png":
        raise InputError("--plot", str(path), "a file name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise InputError("--plot", str(path), "a file in a folder that exists")


def write_plot(results: Sequence[Measured], path: Path) -> None:
    """A row for each task: shares of answers, and distances.

    InputError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 2, squeeze=False, width_ratios=(5, 2))
    for (shares, distances), measured in zip(axes, results, strict=True):
        _plot_shares(shares, measured)
        _plot_distances(distances, measured)
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise InputError(
            "--plot", f"{path} ({error.strerror})", "a file that can be written"
        ) from None


def _plot_shares(axis: Any, measured: Measured) -> None:
    answers = top_answers(measured, ANSWERS)
    laws = [("truth", measured.reference), *((m.name, m.law) for m in measured.methods)]
    width = 0.8 / len(laws)
    for index, (name, law) in enumerate(laws):
        places = [place + (index - 1.5) * width for place in range(len(answers))]
        heights = [law.get(answer, 0.0) for answer in answers]
        axis.bar(places, heights, width, label=name, color=COLOURS[index])
    axis.set_xticks(range(len(answers)), [_wrapped(answer) for answer in answers], fontsize=8)
    axis.set_ylabel("share of answers")
    axis.set_title(f"{measured.task.name}   ({measured.task.wanted})", fontsize=10, loc="left")
    axis.legend(fontsize=8)


def _plot_distances(axis: Any, measured: Measured) -> None:
    names = [method.name for method in measured.methods]
    values = [method.distance for method in measured.methods]
    bars = axis.barh(names, values, color=COLOURS[1:])
    axis.bar_label(bars, [f"{value:.3f}" for value in values], padding=3, fontsize=8)
    axis.axvline(measured.chance, color=COLOURS[0], linestyle=":", linewidth=1)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15)
    axis.set_title("distance from the truth", fontsize=10, loc="left")
    axis.set_xlabel("total variation (dotted: an exact sampler)", fontsize=8)


def _wrapped(answer: str) -> str:
    """At most 18 characters a line. A dollar sign would begin a formula."""
    lines = [answer[start : start + 18] for start in range(0, len(answer), 18)]
    return "\n".join(lines).replace("$", r"\$")
