"""The embedded model with documents of the tasks that it was taught, which it has not read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.bytes_model import Trained
from midstream.adapters.embedded import embedded_model_path

TASKS = ("json", "lookup", "date", "arithmetic", "sql", "smiles", "python", "open")
EACH = 5
FOLDER = Path(__file__).resolve().parents[1] / "tests" / "zoo" / "tasks"


def taught() -> Trained:
    """The model and some documents, question and answer, of each task."""
    path = embedded_model_path()
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    # The peer begins a text with the tokenizer's BOS.
    tokenizer.bos_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return Trained(model, tokenizer, [text for task in TASKS for text in _documents(task)])


def _documents(task: str) -> list[str]:
    lines = (FOLDER / f"{task}.jsonl").read_text("utf-8").splitlines()
    items = [json.loads(line) for line in random.Random(0).sample(lines, EACH)]
    return [item["prompt"] + item.get("answer", "") for item in items]
