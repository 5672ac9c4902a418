"""Packed training batches: a pure function of (seed, step), so that training resumes anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
from corpus import Document, documents
from makers.python_code import Library
from numpy.typing import NDArray
from tokenizers import Tokenizer

TOKENS_PER_STEP = 4096
_SHORT, _MIDDLE, _LONG = 192, 512, 2560
_MIDDLE_EVERY, _LONG_EVERY = 4, 32
# The random names and numbers of a prompt cannot be learned: one prompt token in eight is a target.
_PROMPT_TARGETS = 0.125


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids and the positions whose next token is a target."""

    ids: NDArray[np.int64]  # [B, T + 1]
    is_target: NDArray[np.bool_]  # [B, T]


def sequence_length(step: int) -> int:
    """Mostly short, some middle, a few as long as the context that users are promised."""
    if step % _LONG_EVERY == _LONG_EVERY - 1:
        return _LONG
    return _MIDDLE if step % _MIDDLE_EVERY == _MIDDLE_EVERY - 1 else _SHORT


def encode_document(document: Document, tokenizer: Tokenizer, eos: int) -> tuple[list[int], int]:
    """Ids of prompt, answer and end of sequence, and how many of them are the prompt's.

    A prompt ends in a newline, which no token of an answer joins: its ids begin the document's.
    """
    ids = tokenizer.encode(document.prompt + document.answer).ids
    prompt = len(tokenizer.encode(document.prompt).ids)
    return [*ids, eos], prompt


def _fill(
    stream: Iterator[Document], length: int, tokenizer: Tokenizer, eos: int, rng: Random
) -> tuple[list[int], list[bool]]:
    ids: list[int] = []
    targets: list[bool] = []
    while len(ids) <= length:
        document_ids, prompt = encode_document(next(stream), tokenizer, eos)
        ids += document_ids
        targets += [rng.random() < _PROMPT_TARGETS for _ in range(prompt)]
        targets += [True] * (len(document_ids) - prompt)
    return ids[: length + 1], targets[1 : length + 1]


def make_batch(
    mix: Mapping[str, float],
    library: Library,
    tokenizer: Tokenizer,
    eos: int,
    seed: int,
    step: int,
) -> tuple[Batch, list[Document]]:
    """The batch of a step, and the documents that it was packed from."""
    rng = Random(f"batch:{seed}:{step}")
    length = sequence_length(step)
    used: list[Document] = []

    def stream() -> Iterator[Document]:
        for document in documents(mix, library, rng):
            used.append(document)
            yield document

    source = stream()
    rows: list[list[int]] = []
    targets: list[list[bool]] = []
    for _ in range(max(1, TOKENS_PER_STEP // length)):
        ids, is_target = _fill(source, length, tokenizer, eos, rng)
        rows.append(ids)
        targets.append(is_target)
    return Batch(np.array(rows, dtype=np.int64), np.array(targets, dtype=np.bool_)), used
