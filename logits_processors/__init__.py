"""The per-step face of a strategy: the LogitsProcessor interface of transformers."""

from __future__ import annotations

from midstream.logits_processors.constrained_sampling import (
    ConstrainedSampling,
    UncheckedLawWarning,
)
from midstream.logits_processors.token_healing import TokenHealing

__all__ = ["ConstrainedSampling", "TokenHealing", "UncheckedLawWarning"]
