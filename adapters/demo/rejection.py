"""The truth to compare with: plain rejection, from samples of the model without any constraint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.middleware.host import Host, logits_on_host

UNFINISHED = b"\xff"
"""Stands for every text that did not end in time, or was broken by a control token."""


def sample_texts(
    host: Host,
    prompt: Sequence[int],
    *,
    samples: int,
    max_new_tokens: int,
    generator: np.random.Generator,
) -> Counter[bytes]:
    """How often each text comes up among independent samples of the model's own law.

    The law is that of sampling one text after the other, to end of sequence or max_new_tokens.
    Texts that begin alike share a forward row, whose next tokens are one multinomial draw.
    """
    vocabulary = host.vocabulary
    eos, special = list(vocabulary.eos_ids), frozenset(vocabulary.special_ids)
    texts: Counter[bytes] = Counter()
    rows = host.start([prompt])
    live = [(b"", samples)]
    for position in range(max_new_tokens):
        logits = logits_on_host(rows.logits)
        parents: list[int] = []
        tokens: list[int] = []
        grown: list[tuple[bytes, int]] = []
        for row, (text, count) in enumerate(live):
            drawn = generator.multinomial(count, _probabilities(logits[row]))
            texts[text] += int(drawn[eos].sum())
            for token in np.flatnonzero(drawn).tolist():
                if token not in special:
                    parents.append(row)
                    tokens.append(token)
                    grown.append((text + vocabulary.token_bytes[token], int(drawn[token])))
        live = grown
        if not live or position + 1 == max_new_tokens:
            break
        rows = rows.advance(parents, tokens)
    texts = +texts
    texts[UNFINISHED] = samples - texts.total()
    return +texts


def _probabilities(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    masses = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: npt.NDArray[np.float64] = masses / masses.sum()
    return probabilities
