"""What is written to the terminal beside a command's result: one-line messages and progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def complain(message: str) -> None:
    """Write one line to stderr."""
    line = " ".join(message.split("\n")).strip()
    sys.stderr.write(f"midstream: {line}\n")
    sys.stderr.flush()


def warn_in_one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours for the user, on one line; those of libraries are no user's business."""
    if category.__module__.startswith("midstream."):
        complain(f"warning: {message}")


def printable(text: str) -> str:
    """A model's text without control characters, which could act on the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[int, str], None]]:
    """A function to call with (done, what is being done).

    It draws a bar on stderr while that is a terminal, and does nothing elsewhere.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, what: None
        return
    columns: tuple[Any, ...] = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, what: bar.update(task, completed=done, description=what)
