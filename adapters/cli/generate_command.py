"""`midstream generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from midstream.adapters.cli.generation import Generation, generation
from midstream.adapters.cli.options import strategy_of
from midstream.adapters.cli.output import as_json, page, show
from midstream.adapters.cli.terminal import progress
from midstream.adapters.model_sources import strategy_file
from midstream.middleware.strategy import Strategy

EXAMPLES = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "midstream generate -p $'Guest 7 picks a city:\\n' --regex 'San .*|Rome' --particles 8",
        "midstream generate -p $'Is SSC a valid SMILES?\\n' --choice yes --choice no --json",
        "midstream generate -m ./my-model -p 'A user: ' --json-schema @user.json --temperature 0.7",
        "midstream generate -m org/name -p 'Answer: ' --strategy strategy.json --seed 3",
        "The embedded model was taught prompts that end in a line feed: $'...\\n' in most shells.",
        "Exit codes: 0 done, 2 bad input, 130 Ctrl-C. What dies is a status, with exit code 0.",
    )
)

_CONSTRAINT = "Constraint: at most one, else any text will do"
_LAW = "Law of the next token"
_DRAWING = "Drawing"

Prompt = Annotated[
    str, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to go on from.")
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
StrategyFile = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        "-s",
        metavar="FILE|DIR|ORG/NAME",
        help="A strategy as JSON. Options that are given override its fields.",
    ),
]
Regex = Annotated[
    str | None,
    typer.Option(
        "--regex", metavar="PATTERN", rich_help_panel=_CONSTRAINT, help="The whole text matches."
    ),
]
JsonSchema = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="JSON|@FILE",
        rich_help_panel=_CONSTRAINT,
        help="The text is compact JSON of this schema.",
    ),
]
Grammar = Annotated[
    str | None,
    typer.Option(
        "--grammar",
        metavar="LARK|@FILE",
        rich_help_panel=_CONSTRAINT,
        help="The text is of this grammar, in llguidance's variant of Lark.",
    ),
]
Choice = Annotated[
    list[str] | None,
    typer.Option(
        "--choice",
        metavar="TEXT",
        rich_help_panel=_CONSTRAINT,
        help="One of the texts; give it several times.",
    ),
]
Particles = Annotated[
    int | None,
    typer.Option(
        "--particles", "-n", rich_help_panel=_DRAWING, help="Weighted texts to draw; 1 by default."
    ),
]
SamplerName = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="auto|mask|awrs",
        rich_help_panel=_DRAWING,
        help="mask: all allowed tokens at once. awrs: adaptive weighted rejection. "
        "auto, the default: mask where the constraint has one at tolerable cost.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", rich_help_panel=_DRAWING, help="Equal seeds give equal texts; 0 by default."
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        rich_help_panel=_DRAWING,
        help="End of sequence included; 256 by default.",
    ),
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", rich_help_panel=_LAW, help="Above 0; 1 by default.")
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", rich_help_panel=_LAW, help="How many of the most probable tokens stay."
    ),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", rich_help_panel=_LAW, help="How much probability mass stays."),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", rich_help_panel=_LAW, help="Least share of the highest probability that stays."
    ),
]
Truncation = Annotated[
    str | None,
    typer.Option(
        "--truncation",
        metavar="target|after_mask",
        rich_help_panel=_LAW,
        help="What the three above mean, needed with them. target: the truncated law is the "
        "target. after_mask: mask, then truncate, as servers do; weights are then not proper.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]


def generate(
    prompt: Prompt,
    model: Model = "embedded",
    strategy: StrategyFile = None,
    regex: Regex = None,
    json_schema: JsonSchema = None,
    grammar: Grammar = None,
    choice: Choice = None,
    particles: Particles = None,
    sampler: SamplerName = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    truncation: Truncation = None,
    as_json_object: AsJson = False,
) -> None:
    """Draw texts that satisfy a constraint, each with the weight that makes the draw exact."""
    given = {
        "--regex": regex,
        "--json-schema": json_schema,
        "--grammar": grammar,
        "--choice": choice or None,
        "--particles": particles,
        "--sampler": sampler,
        "--seed": seed,
        "--max-new-tokens": max_new_tokens,
        "--temperature": temperature,
        "--top-k": top_k,
        "--top-p": top_p,
        "--min-p": min_p,
        "--truncation": truncation,
    }
    base = Strategy() if strategy is None else Strategy.load(strategy_file(strategy))
    asked = strategy_of(base, given)
    with progress(asked.limits.max_new_tokens) as report:
        found: Generation = generation(asked, model, prompt, report)
    if as_json_object:
        typer.echo(as_json(found.result, sampler=found.sampler, seed=asked.seed))
    else:
        show(page(found.result, sampler=found.sampler, reason=found.reason, seed=asked.seed))
