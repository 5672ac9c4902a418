"""Measure models of the zoo on the held-out suite and print a markdown table.

`python tests/zoo/evaluate.py adapters/embedded/model tests/zoo/models/draft ...`
Exact match is by greedy decoding up to the end-of-sequence token. Bits per byte are those of the
answer, its end included, after the prompt; of running text, those of the whole document. For the
open prompts: the total variation distance between the model's law of answers and the true one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from makers.python_code import read_library
from transformers import AutoModelForCausalLM, AutoTokenizer

SUITE = Path(__file__).resolve().parent / "tasks"
_BATCH = 50
_NEW_TOKENS = 100
_TEXTS = 150
_OPEN_PROMPTS = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in fp32 with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    eos: int


def load(folder: Path) -> Loaded:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    name = "general" if folder.name == "model" else folder.name
    return Loaded(name, model, tokenizer, model.generation_config.eos_token_id)


def read_suite(task: str) -> list[dict[str, Any]]:
    """The items of one task file."""
    lines = (SUITE / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def pad(rows: Sequence[Sequence[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the left, and their attention mask."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), filler)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


@torch.inference_mode()
def greedy_answers(loaded: Loaded, prompts: Sequence[str]) -> list[tuple[str, bool]]:
    """The greedy answer to each prompt, and whether it ended in end of sequence."""
    answers: list[tuple[str, bool]] = []
    for first in range(0, len(prompts), _BATCH):
        rows = [loaded.tokenizer(prompt).input_ids for prompt in prompts[first : first + _BATCH]]
        ids, mask = pad(rows, loaded.eos)
        output = loaded.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=_NEW_TOKENS, do_sample=False
        )
        for row, before in zip(output.tolist(), rows, strict=True):
            after = row[ids.shape[1] :]
            ended = loaded.eos in after
            answer = after[: after.index(loaded.eos)] if ended else after
            answers.append((answer_text(loaded, before, answer), ended))
    return answers


def answer_text(loaded: Loaded, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """The text that the answer's ids add to the prompt's: a decoder may strip a leading space."""
    decode = loaded.tokenizer.decode
    whole: str = decode([*prompt, *answer], skip_special_tokens=True)
    return whole[len(decode(prompt, skip_special_tokens=True)) :]


@torch.inference_mode()
def nats(loaded: Loaded, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """-log P(answer and end of sequence | prompt), for the tokenizer's reading of the answer."""
    result: list[float] = []
    for first in range(0, len(pairs), _BATCH):
        chunk = pairs[first : first + _BATCH]
        rows = [[*loaded.tokenizer(p + a).input_ids, loaded.eos] for p, a in chunk]
        starts = [len(loaded.tokenizer(p).input_ids) for p, _ in chunk]
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=loaded.eos
        )
        log_p = loaded.model(input_ids=ids).logits.log_softmax(-1)
        for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
            begin = max(1, start)
            at = torch.arange(begin - 1, len(row) - 1)
            result.append(-log_p[index, at, torch.tensor(row[begin:])].sum().item())
    return result


def bits_per_byte(loaded: Loaded, pairs: Sequence[tuple[str, str]]) -> float:
    """Mean over the bytes of all answers."""
    size = sum(len(answer.encode()) for _, answer in pairs)
    return sum(nats(loaded, pairs)) / size / math.log(2)


def open_distances(loaded: Loaded) -> dict[str, float]:
    """Total variation distance from the true law of answers, a mean over prompts of each kind."""
    laws: Mapping[str, Mapping[str, float]] = json.loads(
        (SUITE / "open_laws.json").read_text(encoding="utf-8")
    )
    items = read_suite("open")
    distances: dict[str, float] = {}
    for kind, law in laws.items():
        prompts = [item["prompt"] for item in items if item["kind"] == kind][:_OPEN_PROMPTS]
        total = 0.0
        for prompt in prompts:
            model_p = [math.exp(-n) for n in nats(loaded, [(prompt, text) for text in law])]
            gaps = sum(abs(p - q) for p, q in zip(model_p, law.values(), strict=True))
            total += 0.5 * (gaps + max(0.0, 1.0 - sum(model_p)))
        distances[kind] = total / len(prompts)
    return distances


def measure(loaded: Loaded, limit: int) -> dict[str, str]:
    """Every row of the table for one model."""
    rows: dict[str, str] = {
        "parameters": f"{sum(p.numel() for p in loaded.model.parameters()):,}",
    }
    for path in sorted(SUITE.glob("*.jsonl")):
        if path.stem == "open":
            continue
        items = read_suite(path.stem)[:limit]
        answers = greedy_answers(loaded, [item["prompt"] for item in items])
        right = sum(a == item["answer"] for (a, _), item in zip(answers, items, strict=True))
        ended = sum(end for _, end in answers)
        rows[f"{path.stem}: exact match"] = f"{right / len(items):.3f}"
        rows[f"{path.stem}: ended"] = f"{ended / len(items):.3f}"
        pairs = [(item["prompt"], item["answer"]) for item in items]
        rows[f"{path.stem}: bits per byte"] = f"{bits_per_byte(loaded, pairs):.3f}"
        print(f"{loaded.name}: {path.stem} done", file=sys.stderr, flush=True)
    library, rng = read_library(held_out=True), Random(0)
    for name, texts in (("functions", library.functions), ("docstrings", library.docstrings)):
        chosen = rng.sample(texts, min(_TEXTS, len(texts)))
        value = bits_per_byte(loaded, [("", text) for text in chosen])
        rows[f"standard library {name}: bits per byte"] = f"{value:.3f}"
    for kind, distance in open_distances(loaded).items():
        rows[f"open {kind}: total variation"] = f"{distance:.3f}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, default=1000, help="items of a task at most")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = [load(folder) for folder in options.folders]
    columns = [measure(model, options.limit) for model in loaded]
    print("| | " + " | ".join(model.name for model in loaded) + " |")
    print("|---|" + "---|" * len(loaded))
    for row in columns[0]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns) + " |")


if __name__ == "__main__":
    main()
