"""What every test stands on."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def torch_begins_alike() -> None:
    """torch's own random numbers do not depend on which tests came before."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
