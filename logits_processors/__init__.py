"""The per-step face of a strategy: the LogitsProcessor interface of transformers."""

from __future__ import annotations

from midstream.logits_processors.constrained_sampling import (
    ConstrainedSampling,
    UncheckedLawWarning,
)

__all__ = ["ConstrainedSampling", "UncheckedLawWarning"]
