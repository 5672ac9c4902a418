"""`midstream bytes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from midstream.adapters.cli.output import show
from midstream.middleware.bytes.beam import Beam
from midstream.middleware.errors import InputError

EXAMPLES = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "midstream bytes -p 'def main' --top 5",
        "midstream bytes -p $'Guest 7 picks a city:\\nSan Fr' --json",
        "midstream bytes --file README.md --plot surprise.png",
        "[bold]What is computed[/bold]",
        "A model gives laws over tokens. The law of the next byte is a sum over token strings: all "
        "those that spell the text, the last token perhaps going on over its end.",
        "--target canonical sums over the strings that the tokenizer itself would make. They are "
        "few, so the sum is whole. It leaves out what the model gives to other strings: log P is a "
        "lower bound.",
        "--target all sums over every string, by a beam: what it left out is told, and bounds the "
        "error. No byte that some token can spell has probability 0.",
        "[bold]Bits per byte[/bold]",
        "stepwise: each byte by the law of the next byte given those before. prefix: by the mass "
        "of the text. tokens: of the tokenizer's own encoding, the figure that is usually told; it "
        "counts one string alone, so it is at least prefix. Lower is better, and models with "
        "different tokenizers can be compared.",
        "Exit codes: 0 done, 2 bad input. A text that nothing covers has probability 0, exit code "
        "0.",
    )
)

Text = Annotated[
    str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The text; it may be empty.")
]
File = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", help="The text, from a file, as is.")
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="embedded|DIR|ORG/NAME",
        help="The model that ships with midstream, a folder, or a model of the Hub.",
    ),
]
Target = Annotated[
    str, typer.Option("--target", metavar="canonical|all", help="Which token strings count.")
]
Width = Annotated[
    int | None, typer.Option("--beam", metavar="N", help="Of --target all: strings followed; 8.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", help="Of each law of the next token, before the sum.")
]
ByteTemperature = Annotated[
    float, typer.Option("--byte-temperature", help="Of each law of the next byte, after the sum.")
]
Top = Annotated[int, typer.Option("--top", min=1, max=257, help="Rows of the table.")]
Picture = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.png", help="The surprise of each byte, as a picture."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]


def bytes_(
    prompt: Text = None,
    file: File = None,
    model: Model = "embedded",
    target: Target = "canonical",
    beam: Width = None,
    temperature: Temperature = 1.0,
    byte_temperature: ByteTemperature = 1.0,
    top: Top = 12,
    plot: Picture = None,
    as_json_object: AsJson = False,
) -> None:
    """What byte comes next, and how many bits each byte of a text costs."""
    text = _text(prompt, file)
    if target not in ("canonical", "all"):
        raise InputError("--target", target, '"canonical" or "all"')
    if beam is not None and target != "all":
        raise InputError("--beam", beam, "none with --target canonical, whose sum is whole")
    if plot is not None:
        from midstream.adapters.demo.plot import check_plot

        check_plot(plot)
    from midstream.adapters.cli.bytes_report import as_json, page, write_plot
    from midstream.adapters.cli.model import load_model  # torch takes seconds to import
    from midstream.middleware.bytes.model import ByteModel

    host = load_model(model).host
    made = ByteModel(
        host,
        target="all" if target == "all" else "canonical",
        beam=None if beam is None else Beam(width=beam),
        token_temperature=temperature,
        byte_temperature=byte_temperature,
    )
    _check_length(host, text, "--prompt" if file is None else "--file")
    law = made.law(text)
    report = made.report(text)
    if as_json_object:
        typer.echo(as_json(law, report, made.undecided))
    else:
        show(page(law, report, made.undecided, top))
    if plot is not None:
        write_plot(report, plot)


def _check_length(host: Any, text: bytes, option: str) -> None:
    """InputError for a text that the model cannot read at once, its beginning counted in."""
    limit = host.context_length
    tokens = len(host.tokenizer(text.decode(errors="replace"))["input_ids"]) + 1
    if limit is not None and tokens > limit:
        accepted = f"a text of fewer than {limit} tokens, all that the model takes"
        raise InputError(option, f"{tokens} tokens", accepted)


def _text(prompt: str | None, file: Path | None) -> bytes:
    if (prompt is None) == (file is None):
        raise InputError("--prompt", "both" if file is not None else "neither", "it or --file")
    if file is None:
        assert prompt is not None
        return prompt.encode("utf-8", "surrogateescape")  # bytes of the shell that are no text
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError("--file", f"{file} ({error.strerror})", "a readable file") from None
