"""The embedded model under a finite constraint: masking and SMC against every tokenization."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def masking_fooled() -> ModuleType:
    """The benchmark of that name, whose exact walk is the reference."""
    path = REPOSITORY / "benchmarks" / "masking_fooled.py"
    spec = importlib.util.spec_from_file_location("masking_fooled", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_evidence_and_posterior_of_a_real_model(masking_fooled: ModuleType) -> None:
    told = masking_fooled.measure(
        masking_fooled.PROMPT, masking_fooled.PATTERN, particles=[10, 100], seeds=20
    )
    assert told["left_out"] < 1e-9 * told["mass"]
    assert sum(told["masked"].values()) == pytest.approx(1, abs=1e-6)
    assert told["masked_distance"] > 0.3
    (_, few, _, _), (_, many, evidence, error) = told["smc"]
    assert abs(evidence - 1) < 4 * error + 1e-3
    assert many < few
    assert many < 0.35 * told["masked_distance"]
