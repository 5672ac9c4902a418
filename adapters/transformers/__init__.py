"""midstream inside transformers: a host for causal models, and particles in `generate()`."""

from __future__ import annotations

from midstream.adapters.transformers.custom_generate import ParticleDecoding, SMCOutput, smc
from midstream.adapters.transformers.healing import HealedDecoding, HealedOutput, heal
from midstream.adapters.transformers.host import StaticSize, TransformersHost, TransformersRows

__all__ = [
    "HealedDecoding",
    "HealedOutput",
    "ParticleDecoding",
    "SMCOutput",
    "StaticSize",
    "TransformersHost",
    "TransformersRows",
    "heal",
    "smc",
]
