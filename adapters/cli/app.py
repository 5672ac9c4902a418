"""The commands, and what becomes of their errors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from midstream.adapters.cli.bytes_command import EXAMPLES as BYTES_EXAMPLES
from midstream.adapters.cli.bytes_command import bytes_
from midstream.adapters.cli.demo_command import demo
from midstream.adapters.cli.generate_command import EXAMPLES, generate
from midstream.adapters.cli.serve_command import EXAMPLES as SERVE_EXAMPLES
from midstream.adapters.cli.serve_command import serve
from midstream.adapters.cli.terminal import complain, warn_in_one_line
from midstream.middleware.errors import InputError

INTERRUPTED = 130
BAD_INPUT = 2
FAULT = 1

app = typer.Typer(
    name="midstream",
    help="Exact, weighted constrained generation with a language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate", epilog=EXAMPLES)(generate)
app.command("demo")(demo)
app.command("bytes", epilog=BYTES_EXAMPLES)(bytes_)
app.command("serve", epilog=SERVE_EXAMPLES)(serve)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"midstream {version('midstream')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Exact, weighted constrained generation with a language model."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line, without the program's name; its exit code.

    Whatever goes wrong is one line on stderr: 2 for bad input, 130 for Ctrl-C, 1 for the rest.
    """
    with warnings.catch_warnings():
        warnings.showwarning = warn_in_one_line
        try:
            code = app(args=list(arguments), prog_name="midstream", standalone_mode=False)
        except (KeyboardInterrupt, typer.Abort):
            complain("interrupted")
            return INTERRUPTED
        except InputError as error:
            complain(f"error: {error}")
            return BAD_INPUT
        except Exception as error:
            if hasattr(error, "format_message"):  # typer's own; the class moved between versions
                return _usage(error)
            complain(f"error: {type(error).__name__}: {error}")
            return FAULT
    if code == INTERRUPTED:
        complain("interrupted")
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> int:
    """A complaint of typer's. Its message is empty where it has printed the help instead."""
    message = error.format_message()
    if message:
        command = getattr(getattr(error, "ctx", None), "command_path", "midstream")
        complain(f"error: {message} (see {command} --help)")
    return BAD_INPUT
