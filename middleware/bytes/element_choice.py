"""Elements of a cover besides the one that is drawn of all: the most probable, and the allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from midstream.kernels.bitmask import mask_of_tokens, mask_words
from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.sorted_row import SortedRow
from midstream.middleware.bytes.beyond import Beyond
from midstream.middleware.bytes.elements import STAYS
from midstream.middleware.bytes.law import Standing


def allowed_part(
    head: Standing, beyond: Beyond, vocabulary: ByteSortedVocabulary, inverse_temperature: float
) -> Standing:
    """A head of which only those tokens count whose bytes beyond the text are allowed."""
    if head.trie == 0:
        return head
    logits = head.row.logits
    begin, end = int(vocabulary.ends[head.trie]), int(vocabulary.high[head.trie])
    ids = vocabulary.order[begin:end][np.isfinite(head.row.log_masses(begin, end))]
    bits = np.empty(mask_words(logits.size), np.uint32)
    mask_of_tokens(ids[beyond.allows(ids, head.written)], bits)
    row = SortedRow(logits, vocabulary, bits, inverse_temperature)
    return Standing(head.path, head.written, head.trie, head.log_p, row, head.may_end)


def most_probable(
    standing: Sequence[Standing], vocabulary: ByteSortedVocabulary
) -> tuple[Standing, int] | None:
    """The element of the greatest probability: a head, and a token or STAYS. None where none has
    any.
    """
    best, log_best = None, -math.inf
    for head in standing:
        token, log_p = STAYS, head.log_p
        if head.trie:
            begin, end = int(vocabulary.ends[head.trie]), int(vocabulary.high[head.trie])
            masses = head.row.log_masses(begin, end)
            at = int(masses.argmax())
            token, log_p = int(vocabulary.order[begin + at]), head.log_p + float(masses[at])
        if log_p > log_best:
            best, log_best = (head, token), log_p
    return best
