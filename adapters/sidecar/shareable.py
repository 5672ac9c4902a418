"""Which models can have rows of many requests in one forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from midstream.adapters.sidecar.forwards import Advance, Prompt
from midstream.adapters.sidecar.reading import PaddedReading
from midstream.adapters.sidecar.shared_rows import SharedRows
from midstream.adapters.transformers import TransformersHost
from midstream.middleware.host import logits_on_host

ATTENTION = ("sdpa", "eager")
"""Implementations that take a mask with holes of any shape."""

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary embeddings that depend on the longest row of a batch."""

_PROMPTS: tuple[Prompt, ...] = ((1, 2, 3), (3, 1, 2, 2, 1, 3, 1))
_TOLERANCE = {4: 1e-3, 2: 0.1}
"""By the bytes of a weight, as a share of the largest logit: far above rounding, far below what
another position or a neighbour's token does."""


def why_not_shared(host: TransformersHost) -> str:
    """Why this model reads one request at a time; empty where rows can share a pass.

    What cannot be known from its settings is tried: two short prompts, together and apart.
    """
    return _by_settings(host.model) or _by_trial(host)


def token_bytes(host: TransformersHost) -> int:
    """What the cache keeps of one token of one row, at most."""
    reading = PaddedReading(host, [_PROMPTS[0][:1]])
    reading.read()
    kept = [tensor for layer in reading.cache.layers for tensor in _of(layer)]
    sizes: list[int] = [each.numel() * each.element_size() for each in kept if each is not None]
    return max(sum(sizes), 1)


def _of(layer: Any) -> tuple[Any, Any]:
    """Its keys and values; of a recurrent layer, which grows by no token, nothing."""
    return getattr(layer, "keys", None), getattr(layer, "values", None)


def _by_settings(model: Any) -> str:
    config = model.config.get_text_config(decoder=True)
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    if kinds - {DynamicLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds - {DynamicLayer}))
        return f"some layers do not keep the whole text ({names})"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "the model takes no positions"
    if config._attn_implementation not in ATTENTION:
        return f"the attention {config._attn_implementation} takes no mask of single columns"
    if _rope_types(getattr(config, "rope_parameters", None)) & set(LENGTH_DEPENDENT):
        return "the rotary embedding depends on the longest row"
    return ""


def _rope_types(parameters: Any) -> set[str]:
    """Of all layers."""
    if not isinstance(parameters, Mapping):
        return set()
    found = {str(parameters.get("rope_type", "default"))}
    return found.union(*(_rope_types(each) for each in parameters.values()))


def _by_trial(host: TransformersHost) -> str:
    try:
        worst = _difference(host)
    except Exception as fault:  # models raise what their parts raise
        return f"rows of unequal length fail ({type(fault).__name__})"
    size = host.model.dtype.itemsize
    if not worst <= _TOLERANCE.get(size, _TOLERANCE[2]):
        return "rows of unequal length do not give the logits that each gives alone"
    return ""


def _difference(host: TransformersHost) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    shared = SharedRows(host)
    reading = shared.begin(_PROMPTS)
    while not reading.read():
        pass
    (one, first), (other, second) = shared.join(reading)
    apart = [host.start([prompt]) for prompt in _PROMPTS]
    pairs = [(first, apart[0].logits), (second, apart[1].logits)]
    for advances in (
        [Advance(one, [0, 0], [2, 3]), Advance(other, [0], [1])],
        [Advance(other, [0], [2])],
        [Advance(other, [0], [3]), Advance(one, [1], [1])],
    ):
        read = shared.advance(advances)
        for each, logits in zip(advances, read, strict=True):
            which = 0 if each.sequences is one else 1
            apart[which] = apart[which].advance(each.parents, each.tokens)
            pairs.append((logits, apart[which].logits))
    shares = []
    for ours, theirs in pairs:
        right = logits_on_host(theirs)
        shares.append(float(np.abs(ours - right).max() / np.abs(right).max()))
    return max(shares)
