"""The cheap mask that rejection sampling prunes by."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from midstream.kernels.bitmask import Mask, mask_words, pack_mask
from midstream.middleware.matcher import Matcher, State
from midstream.middleware.vocabulary import Vocabulary


def superset_of(matcher: Matcher, state: State, size: int) -> Mask:
    """A mask uint32 [W] for rows of `size` that holds all that is allowed and maybe more.

    The matcher's own where it has one, else every token that stands for text or for the end:
    control tokens and ids beyond the vocabulary would be rejected one by one, and make the valid
    share of a row tiny.
    """
    bits = np.empty(mask_words(size), np.uint32)
    if not matcher.superset(state, bits):
        words = _candidates(matcher.vocabulary)
        kept = min(words.size, bits.size)
        bits[:kept] = words[:kept]
        bits[kept:] = 0
    return bits


@lru_cache(maxsize=16)
def _candidates(vocabulary: Vocabulary) -> Mask:
    candidates = np.ones(len(vocabulary), np.bool_)
    candidates[list(vocabulary.special_ids)] = False
    candidates[list(vocabulary.eos_ids)] = True
    words = pack_mask(candidates)
    words.flags.writeable = False
    return words
