"""Train one model of the zoo on the CPU; a run resumes from its checkpoint.

`python tests/zoo/train.py --model general --tokenizers DIR --output DIR --checkpoint FILE`
The learning rate warms up, stays constant, and falls linearly to 0 over the last part of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from batches import TOKENS_PER_STEP, Batch, make_batch
from corpus import Document
from makers.python_code import read_library
from specs import SPECS, build_model, load_tokenizer, save_model
from torch.optim import AdamW, Muon
from transformers import LlamaForCausalLM

_SUITE = Path(__file__).resolve().parent / "tasks"
_WARM_UP = 60
_ROWS = 512
_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    model: str
    tokenizers: Path
    output: Path
    checkpoint: Path
    steps: int
    late_mix_from: int
    decay: float
    rate: float
    seed: int
    threads: int
    save_every: int


def read_options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(SPECS), required=True)
    parser.add_argument("--tokenizers", type=Path, required=True, help="from build_tokenizers.py")
    parser.add_argument("--output", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--checkpoint", type=Path, required=True, help="written, and resumed from")
    parser.add_argument("--steps", type=int, default=3000, help=f"of {TOKENS_PER_STEP} tokens")
    parser.add_argument("--late-mix-from", type=int, default=2250, help="step of the late mix")
    parser.add_argument("--decay", type=float, default=0.4, help="share of steps with falling rate")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    return Options(**vars(parser.parse_args()))


def rate_factor(step: int, steps: int, decay: float) -> float:
    """The learning rate over its peak."""
    left = (steps - step) / max(1.0, decay * steps)
    return min(1.0, (step + 1) / _WARM_UP, left)


def build_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and gains."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the targets, in nats a token."""
    ids = torch.from_numpy(batch.ids)
    chosen = torch.from_numpy(batch.is_target.ravel().nonzero()[0])
    targets = ids[:, 1:].reshape(-1)[chosen]
    # A row count of its own for every batch would keep a matrix kernel each in memory.
    filler = -len(chosen) % _ROWS
    chosen = torch.nn.functional.pad(chosen, (0, filler))
    targets = torch.nn.functional.pad(targets, (0, filler), value=_IGNORED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[chosen])
    return torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=_IGNORED)


def read_suite_prompts() -> set[str]:
    """Every prompt of the held-out suite."""
    prompts: set[str] = set()
    for path in _SUITE.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            prompts.add(json.loads(line)["prompt"])
    return prompts


def check_unseen(used: list[Document], suite: set[str]) -> None:
    """Raise ValueError where a training document begins with a prompt of the suite."""
    for document in used:
        if document.prompt and document.prompt in suite:
            raise ValueError(f"suite prompt in the training text: {document.prompt!r}")


def save_checkpoint(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]
) -> int:
    """The step to go on from: 0 without a checkpoint."""
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def train(options: Options) -> None:
    """The whole run, and the model folder at its end."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    spec = SPECS[options.model]
    folder = options.tokenizers / spec.tokenizer
    tokenizer, eos, pad = load_tokenizer(folder)
    library, suite = read_library(held_out=False), read_suite_prompts()
    model = build_model(spec, tokenizer, eos, pad)
    optimizers = build_optimizers(model, options.rate)
    first = load_checkpoint(options.checkpoint, model, optimizers)
    started, mean_loss, seen = time.monotonic(), 0.0, 0
    for step in range(first, options.steps):
        mix = spec.mix if step < options.late_mix_from else spec.late_mix
        batch, used = make_batch(mix, library, tokenizer, eos, options.seed, step)
        check_unseen(used, suite)
        loss = batch_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.rate * rate_factor(step, options.steps, options.decay)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += batch.is_target.size
        mean_loss = loss.item() if step == first else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 20 == 0 or step == options.steps - 1:
            elapsed_s = time.monotonic() - started
            print(
                f"step {step + 1}/{options.steps}  loss {mean_loss:.3f}  "
                f"{seen / elapsed_s:,.0f} tokens/s  {elapsed_s / 60:.1f} min",
                file=sys.stderr,
                flush=True,
            )
        if (step + 1) % options.save_every == 0:
            save_checkpoint(options.checkpoint, model, optimizers, step + 1)
    save_model(model, folder, options.output)


if __name__ == "__main__":
    train(read_options())
