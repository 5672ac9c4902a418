"""The command line, `midstream`."""

from __future__ import annotations

import io
import sys

NEEDED = "midstream: error: the command line needs typer and rich: pip install 'midstream[cli]'\n"


def main() -> None:
    """The console script. Exit codes: 0, 2 for bad input, 130 for Ctrl-C, 1 for any other fault."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        sys.stderr.write(NEEDED)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is no error
            stream.reconfigure(errors="backslashreplace")
    try:
        from midstream.adapters.cli.app import run
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))
