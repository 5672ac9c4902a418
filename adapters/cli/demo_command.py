"""`midstream demo`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from midstream.adapters.cli.terminal import progress
from midstream.adapters.demo.plot import check_plot, write_plot
from midstream.adapters.demo.report import data, page
from midstream.adapters.demo.run import STAGES, run_demo
from midstream.middleware.errors import InputError

NEEDED = "the packages of the extra: pip install 'midstream[sidecar]'"

Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.png", help="Draw the same as a picture (extra: plot)."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Equal seeds give equal numbers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]


def demo(plot: Plot = None, seed: Seed = 0, as_json_object: AsJson = False) -> None:
    """See on the embedded model why masking samples wrongly, and how weights put it right."""
    if plot is not None:
        check_plot(plot)
    try:
        from midstream.adapters.demo.server import sidecar_client
    except ImportError as error:
        raise InputError("demo", f"no package {error.name}", NEEDED) from None
    begin = time.monotonic()
    with progress(STAGES + 1) as report:
        report(0, "loading the embedded model")
        import torch  # takes seconds

        from midstream.adapters.cli.model import load_model

        # Threads that wait for each other cost a model of this size more than they bring.
        torch.set_num_threads(1)
        model = load_model("embedded")
        with sidecar_client() as client:
            results = run_demo(
                model.host,
                model.encode,
                client,
                seed=seed,
                on_stage=lambda done, what: report(done + 1, what),
            )
    if plot is not None:
        write_plot(results, plot)
    if as_json_object:
        seconds = time.monotonic() - begin
        typer.echo(json.dumps(data(results, seed=seed, seconds=seconds), allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(page(results, ascii_only=console.options.ascii_only), markup=False)
