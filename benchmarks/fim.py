"""Fill in the middle at random spans cut inside tokens: bits of the true middle.

A small model learns holes between tokens (prefix, suffix, middle, each encoded by itself), from the
sources of Python's standard library. Then holes are cut at random bytes of files that it has not
read. The bits are those of the true middle and its end: all canonical token strings that spell it.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from benchmarks.bytes_model import sources
from benchmarks.report import Cell, Table
from benchmarks.training import TOKENS, byte_level_bpe, train_llama
from midstream.adapters.transformers import TransformersHost
from midstream.middleware.bytes.canonical import Canonical
from midstream.middleware.bytes.fim import Fim, Sentinels
from midstream.middleware.bytes.model import ByteModel
from midstream.middleware.vocabulary import Vocabulary

FOLDER = Path(__file__).resolve().parents[1] / "build" / "fim-model"
SPECIAL = ["<eos>", "<pre>", "<suf>", "<mid>"]
SIZE, STEPS = 1000, 600
AROUND = 160  # bytes on each side of a hole


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--holes", type=int, default=80)
    options = parser.parse_args()
    held_out, texts = sources()
    tokenizer, model = _trained(texts)
    print(_table(tokenizer, model, held_out, options.holes).text())


def _table(tokenizer: Tokenizer, model: Any, texts: list[str], holes: int) -> Table:
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=[0])
    canonical = Canonical.from_tokenizer(tokenizer, vocabulary)
    made = ByteModel(TransformersHost(model, vocabulary), canonical=canonical)
    fim = Fim(tokenizer, vocabulary, Sentinels(1, 2, 3, begin=(0,)))
    bits: dict[str, list[float]] = {"both parts as they are": [], "healed left": [], "both": []}
    for prefix, middle, suffix in _holes(tokenizer, texts, holes):
        healed, plain = fim.prompt(prefix, suffix), fim.prompt(prefix, suffix, heal=False)
        left = fim.prompt(prefix, "")
        context = list(plain.token_ids)
        bits["both parts as they are"].append(_bits(made, context, b"", middle.encode()))
        after = context[context.index(2) : -1]
        context = [*left.token_ids[: left.token_ids.index(2)], *after, 3]
        bits["healed left"].append(_bits(made, context, left.tail, middle.encode()))
        context = list(healed.token_ids[: healed.token_ids.index(3) + 1])
        bits["both"].append(_bits(made, context, healed.tail, middle.encode() + healed.head))
    rows: list[list[Cell]] = [
        [name, f"{statistics.fmean(each):.2f}", f"{statistics.median(each):.2f}"]
        for name, each in bits.items()
    ]
    title = f"bits of the true middle and its end, {holes} holes of 4 to 24 bytes inside tokens"
    return Table(title, ["edges", "mean", "median"], rows)


def _bits(made: ByteModel, context: list[int], tail: bytes, text: bytes) -> float:
    """-log2 P(the text, then the end | the tail begins it), behind fixed ids."""
    law = made.law(tail + text, context_ids=context)
    log_end = law.log_mass + law.log_going + float(law.log_p[256])
    begun = made.score(tail, context_ids=context) if tail else 0.0
    return (begun - log_end) / math.log(2.0)


def _holes(tokenizer: Tokenizer, texts: list[str], count: int) -> list[tuple[str, str, str]]:
    """Random spans both of whose ends lie inside a token of the whole text."""
    draw, found = random.Random(1), []
    while len(found) < count:
        text = draw.choice(texts)
        begin = draw.randrange(AROUND, len(text) - AROUND - 24)
        end = begin + draw.randint(4, 24)
        around = text[begin - AROUND : end + AROUND]
        inside = {i for a, b in tokenizer.encode(around).offsets for i in range(a + 1, b)}
        if {AROUND, AROUND + end - begin} <= inside:
            found.append((around[:AROUND], text[begin:end], around[AROUND + end - begin :]))
    return found


def _trained(texts: list[str]) -> tuple[Tokenizer, Any]:
    """The tokenizer and the model, from the folder of an earlier run or trained now."""
    tokenizer = byte_level_bpe(texts, SIZE, SPECIAL)
    if not (FOLDER / "model.safetensors").exists():
        _train(tokenizer, texts).save_pretrained(FOLDER)
    return tokenizer, AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def _train(tokenizer: Tokenizer, texts: list[str]) -> Any:
    ids = [tokenizer.encode(text).ids for text in texts]
    return train_llama(
        lambda draw: _example(draw, ids), vocab_size=SIZE, positions=1024, steps=STEPS
    )


def _example(draw: random.Random, files: list[list[int]]) -> list[int]:
    """A row with a hole between tokens: prefix, suffix, then the middle and its end."""
    ids = draw.choice([each for each in files if len(each) > TOKENS])
    begin = draw.randrange(len(ids) - TOKENS)
    row = ids[begin : begin + TOKENS - 5]
    first = draw.randrange(8, len(row) - 24)
    last = first + draw.randint(1, 16)
    return [0, 1, *row[:first], 2, *row[last:], 3, *row[first:last], 0]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
