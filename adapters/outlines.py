"""midstream under Outlines: a processor for `outlines.Generator(model, processor=...)`."""

from __future__ import annotations

from typing import Any

from midstream.logits_processors import ConstrainedSampling
from midstream.middleware.errors import StrategyError


def outlines_processor(model: Any, output_type: Any, **options: Any) -> ConstrainedSampling:
    """What Outlines calls an output type, sampled with weights.

    `outlines.Generator(model, output_type)` becomes `outlines.Generator(model,
    processor=outlines_processor(model, output_type))`; after each call of the generator the
    processor's log_weights, status and reasons are those of its texts. Outlines decodes greedily
    unless it is called with do_sample=True.

    model: an Outlines model made by `outlines.from_transformers`. output_type: whatever Outlines
        takes, or a constraint
    of midstream; a list has one for each prompt of a batch. options: those of ConstrainedSampling.
    Raises StrategyError for another kind of model, which would not call a processor as transformers
    does.
    """
    tokenizer = getattr(model, "hf_tokenizer", None)
    if tokenizer is None:
        accepted = "a model of outlines.from_transformers"
        raise StrategyError("model", type(model).__name__, accepted)
    return ConstrainedSampling(output_type, tokenizer, **options)
