"""A JSON Schema check by the length of the text before it, ours beside the peer's.

check: whether one token may come next. step: going on by one token, every state being kept. back:
going on from a kept parent, where another child of it had gone on.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks.peer import json_potential
from benchmarks.report import Cell, Table, arguments, show
from benchmarks.timing import Samples, take_turns
from benchmarks.tiny_model import make_tokenizer
from midstream.middleware.constraints.json_schema import JsonSchema
from midstream.middleware.matcher import Matcher, State
from midstream.middleware.vocabulary import Vocabulary

SIZE = 4096
PREFIX_BYTES = (50, 500, 1400, 5000)
STEPS = 16
SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["name", "count"],
        "additionalProperties": False,
    },
}


def document(length: int) -> str:
    """The first `length` characters of a long text of the schema, which end inside a name."""
    text = "["
    for i in itertools.count():
        record = f'{{"name":"item number {i} of the list","count":{i * 37}}},'
        if len(text) + len(record) + 20 > length:
            break
        text += record
    text += '{"name":"'
    return text + "a" * (length - len(text))


def walk(matcher: Matcher, state: State, tokens: Sequence[int]) -> list[State]:
    """The state after each token. All of them are kept."""
    states = []
    for token in tokens:
        state = matcher.advance(state, token)
        assert state is not None, "the document satisfies the schema"
        states.append(state)
    return states


def ours(
    matcher: Matcher, tokens: Sequence[int], letters: Sequence[int], *, rounds: int, clock: str
) -> dict[str, Samples]:
    """Our check, step and way back, at the end of a text."""
    states = walk(matcher, matcher.start(), tokens)
    last, before = states[-1], states[-STEPS]

    def check(i: int) -> None:
        assert matcher.allows(last, [letters[i % len(letters)]])[0]

    def step(i: int) -> None:
        walk(matcher, last, [letters[(i + j) % len(letters)] for j in range(STEPS)])

    def back(i: int) -> None:
        assert matcher.advance(last, letters[i % len(letters)]) is not None

    def far_back(i: int) -> None:
        matcher.advance(last if i % 2 else before, tokens[-1])

    works = {"check": check, "back": back, "far back": far_back}
    taken = take_turns(works, rounds=rounds, block=32, clock=clock)
    steps = take_turns({"step": step}, rounds=rounds, block=2, clock=clock)["step"]
    return {**taken, "step": Samples(tuple(us / STEPS for us in steps.us))}


def theirs(text: str, spelled: Sequence[bytes], *, rounds: int, clock: str) -> Samples:
    """The peer's check of one more token, after it has seen the text.

    Each time another token, as in a generation: what it was asked before it answers from a cache.
    """
    potential = json_potential(SCHEMA)
    loop = asyncio.new_event_loop()
    context = list(text.encode())
    assert loop.run_until_complete(potential.prefix(context)) == 0.0
    tokens = iter(spelled)

    def check(_: int) -> None:
        assert loop.run_until_complete(potential.prefix([*context, *next(tokens)])) == 0.0

    found = take_turns({"check": check}, rounds=rounds, clock=clock)["check"]
    loop.close()
    return found


def table(*, rounds: int, clock: str) -> Table:
    """One row a length."""
    tokenizer = make_tokenizer(SIZE)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=[tokenizer.eos_token_id])
    names = enumerate(vocabulary.token_bytes)
    letters = [token for token, name in names if name.isalpha() and name.isascii()][:512]
    rows: list[list[Cell]] = []
    for length in PREFIX_BYTES:
        text = document(length)
        matcher = JsonSchema(SCHEMA).compile(vocabulary)
        tokens = tokenizer.encode(text)
        us = ours(matcher, tokens, letters, rounds=rounds, clock=clock)
        spelled = [vocabulary.token_bytes[token] for token in letters]
        peer = theirs(text, spelled, rounds=max(rounds // 5, 3), clock=clock)
        medians = [us[name].median_us for name in ("check", "step", "back", "far back")]
        ratio = f"{peer.median_us / medians[0]:,.0f}x"
        rows.append([length, len(tokens), *medians, peer.median_us, ratio])
    columns = [
        "prefix bytes",
        "tokens",
        "check us",
        "step us",
        "back us",
        f"back {STEPS} us",
        "genlm-control check us",
        "ratio",
    ]
    return Table(f"A JSON Schema check, V = {SIZE}", columns, rows)


def main() -> None:
    """Run from the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="blocks of 32 checks a length")
    options = parser.parse_args()
    rounds = 4 if options.quick else options.rounds
    show([table(rounds=rounds, clock=options.clock)], as_json=options.json)


if __name__ == "__main__":
    main()
