"""Prompts cut at a random byte: how well the true next byte is foretold."""

from __future__ import annotations

import copy
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.bytes_model import Trained
from benchmarks.peer_bytes import PeerBytes
from benchmarks.report import Cell, Table
from midstream.adapters.transformers import TransformersHost
from midstream.kernels.sorted_row import SortedRow
from midstream.middleware.bytes import ByteModel
from midstream.middleware.bytes.tail import byte_sorted

Float = npt.NDArray[np.float64]
Law = Callable[[bytes], Float]


@dataclass(frozen=True, slots=True)
class Cut:
    """A prompt, the byte after it, and whether the whole text has a token over the cut."""

    prompt: bytes
    byte: int
    inside: bool


def cut_table(
    made: Trained, canonical: ByteModel, beam: ByteModel, peer: PeerBytes, *, cuts: int
) -> Table:
    """Bits for the true next byte, over all cuts, inside tokens and between them; and top-1."""
    chosen = _cuts(made, cuts)
    one = _OneToken(made)
    ways: dict[str, Law] = {
        "tokenise and go": one.naive,
        "one token back, masked": one.healed,
        "genlm-bytes, K = 5": peer.law,
        "ours, all": beam.next_byte,
        "ours, canonical": canonical.next_byte,
    }
    rows: list[list[Cell]] = []
    for name, law in ways.items():
        laws = [law(cut.prompt) for cut in chosen]
        bits = [_bits(p[c.byte] / p.sum()) for p, c in zip(laws, chosen, strict=True)]
        inside = [b for b, c in zip(bits, chosen, strict=True) if c.inside]
        between = [b for b, c in zip(bits, chosen, strict=True) if not c.inside]
        hits = sum(int(p.argmax()) == c.byte for p, c in zip(laws, chosen, strict=True))
        means = [statistics.fmean(each) if each else math.nan for each in (bits, inside, between)]
        rows.append([name, *(f"{mean:.3f}" for mean in means), hits / cuts])
    hits = sum(one.transformers(cut.prompt) == cut.byte for cut in chosen)
    rows.append(["transformers, token_healing (greedy)", "-", "-", "-", hits / cuts])
    columns = ["method", "bits, all", "inside a token", "at a boundary", "top-1"]
    share = sum(cut.inside for cut in chosen) / cuts
    return Table(f"{cuts} cuts, {share:.0%} inside a token", columns, rows)


def _bits(p: float) -> float:
    return -math.log2(p) if p > 0 else math.inf


def _cuts(made: Trained, count: int) -> list[Cut]:
    draw, found = random.Random(2), []
    while len(found) < count:
        text = draw.choice(made.held_out)
        lines = text.splitlines(keepends=True)
        part = "".join(lines[draw.randrange(len(lines)) :])[:100]
        at = draw.randint(40, 70)
        if len(part) <= at:
            continue
        spans = made.tokenizer(part, return_offsets_mapping=True, add_special_tokens=False)
        inside = all(end != at for _, end in spans.offset_mapping)
        found.append(Cut(part[:at].encode(), part.encode()[at], inside))
    return found


class _OneToken:
    """What is done without a cover."""

    def __init__(self, made: Trained) -> None:
        self._made = made
        self._host = TransformersHost(made.model, made.tokenizer)
        self._known = byte_sorted(self._host.vocabulary)

    def naive(self, prompt: bytes) -> Float:
        """The prompt's own tokens, and then the law of the next token's first byte."""
        return self._law(self._ids(prompt), b"")

    def healed(self, prompt: bytes) -> Float:
        """The last token is taken back, and the next one must begin with its bytes."""
        ids = self._ids(prompt)
        return self._law(ids[:-1], self._host.vocabulary.token_bytes[ids[-1]])

    def transformers(self, prompt: bytes) -> int:
        """The byte that generate(token_healing=True) writes next, greedily; -1 where it has changed
        the prompt. It takes white space off both ends: that before the prompt is forgiven.
        """
        model, tokenizer = self._made.model, self._made.tokenizer
        ids = torch.tensor([self._ids(prompt)])
        config = copy.deepcopy(model.generation_config)
        config.update(token_healing=True, do_sample=False, max_new_tokens=4)
        told = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            tokenizer=tokenizer,
        )
        text: str = tokenizer.decode(told[0], skip_special_tokens=True)
        written, begun = text.encode().lstrip(), prompt.lstrip()
        kept = written.startswith(begun) and len(written) > len(begun)
        return written[len(begun)] if kept else -1

    def _ids(self, prompt: bytes) -> list[int]:
        ids: list[int] = self._made.tokenizer.encode(prompt.decode(), add_special_tokens=False)
        return [0, *ids]

    def _law(self, ids: list[int], begun: bytes) -> Float:
        logits: Any = self._host.start([ids]).logits.numpy()[0]
        row, node = SortedRow(logits, self._known), self._known.node(begun)
        logs = np.full(257, -np.inf)
        row.log_bytes(node, logs)
        law = np.exp(logs)
        ends = self._known.ends[node] - self._known.low[node] if begun else 0
        if ends:
            again = self._law([*ids, int(self._known.order[self._known.low[node]])], b"")
            law += (
                np.exp(row.log_sum(int(self._known.low[node]), int(self._known.ends[node]))) * again
            )
        return np.asarray(law / law.sum())
