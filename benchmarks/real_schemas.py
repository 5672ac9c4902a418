"""JSON Schemas that people use: how many compile, which of their documents pass, what masks cost.

Reads a folder of JSON files, each `{"schema": ..., "tests": [{"valid": true, "data": ...}]}`, as
the maskbench of JSONSchemaBench has them. Each schema's first valid documents are followed token by
token, a mask before each token, as an engine would.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Cell, Table, arguments, show
from midstream.adapters.embedded import embedded_model_path
from midstream.middleware.constraints import JsonSchema, ll_compile
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

DOCUMENTS = 2
"""Of each schema."""

TOKENS = 400
"""Of each document."""

Encode = Callable[[str], Sequence[int]]


@dataclass(slots=True)
class Seen:
    """What became of the documents. Times in seconds of processor time, a list entry a document."""

    fates: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    longest: list[float] = field(default_factory=list)
    beyond: list[float] = field(default_factory=list)


def follow(matcher: Matcher, ids: Sequence[int], seen: Seen, row_seconds: float) -> None:
    """One document. Counts its fate, its dearest mask, and what masks took beyond `row_seconds`."""
    state: Any = matcher.start()
    bits = np.zeros(matcher.vocabulary.mask_words, np.uint32)
    taken = [0.0]
    fate = "followed"
    for token in ids[:TOKENS]:
        began = time.thread_time()
        matcher.mask(state, bits)
        taken.append(time.thread_time() - began)
        reason = matcher.reason(state)
        if reason is not None:
            seen.reasons[reason] += 1
            fate = "given up within a limit"
            break
        if not bits[token // 32] >> (token % 32) & 1:
            fate = "refused"
            break
        state = matcher.advance(state, token)
    seen.fates[fate] += 1
    seen.longest.append(max(taken))
    seen.beyond.append(sum(max(0.0, seconds - row_seconds) for seconds in taken))


def schemas(paths: Sequence[Path], vocabulary: Vocabulary, encode: Encode, row: float) -> Seen:
    """All documents of some files."""
    seen = Seen()
    for path in paths:
        content = json.loads(path.read_text("utf-8"))
        valid = [test["data"] for test in content["tests"] if test["valid"]][:DOCUMENTS]
        try:
            matcher = JsonSchema(content["schema"]).compile(vocabulary)
        except ConstraintError:
            seen.fates["schema not accepted"] += len(valid)
            continue
        for data in valid:
            text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
            follow(matcher, encode(text), seen, row)
    return seen


def tables(seen: Seen) -> list[Table]:
    """Fates, reasons and times."""
    whole = sum(seen.fates.values())
    fates: list[list[Cell]] = [[k, n, n / whole * 100] for k, n in seen.fates.most_common()]
    reasons: list[list[Cell]] = [[k, n] for k, n in seen.reasons.most_common()]
    times: list[list[Cell]] = []
    for name, values in (("the dearest mask", seen.longest), ("beyond a row's share", seen.beyond)):
        quantiles = np.quantile(values, [0.5, 0.99, 1.0]) * 1000
        times.append([name, *map(float, quantiles)])
    return [
        Table("Documents", ["fate", "documents", "%"], fates),
        Table("Limits met", ["reason", "documents"], reasons),
        Table("Processor time a document, ms", ["what", "median", "99 %", "largest"], times),
    ]


def _tokens(model: str | None) -> tuple[Vocabulary, Encode]:
    """mistral-common's vocabulary of 131,072 tokens for "tekken", else a tokenizer's folder."""
    if model == "tekken":
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        tokenizer = MistralTokenizer.v3(is_tekken=True).instruct_tokenizer.tokenizer
        return Vocabulary.from_tokenizer(tokenizer), lambda text: tokenizer.encode(
            text, bos=False, eos=False
        )
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(model or embedded_model_path())
    return Vocabulary.from_tokenizer(loaded), lambda text: loaded.encode(
        text, add_special_tokens=False
    )


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="of JSON files, one a schema")
    parser.add_argument("--files", type=int, default=1000, help="how many, drawn at random")
    parser.add_argument("--tokenizer", help='a folder, or "tekken"')
    parser.add_argument("--fuel", type=int, help="another limit on a mask's lexer")
    parser.add_argument("--row-ms", type=float, default=2.0, help="a row's share of a step")
    asked = parser.parse_args()
    if asked.fuel:
        ll_compile.LIMITS["step_lexer_fuel"] = asked.fuel
    paths = sorted(asked.folder.rglob("*.json"))
    random.Random(0).shuffle(paths)
    paths = paths[: 50 if asked.quick else asked.files]
    if not paths:
        parser.error(f"no JSON files in {asked.folder}")
    vocabulary, encode = _tokens(asked.tokenizer)
    show(tables(schemas(paths, vocabulary, encode, asked.row_ms / 1000)), as_json=asked.json)


if __name__ == "__main__":
    main()
