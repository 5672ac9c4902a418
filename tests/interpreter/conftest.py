"""Kernels in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/interpreter`.

The variable decides when triton is imported, so these tests have a process of their own; in an
ordinary run the folder is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the folder out unless the interpreter is on; say so to whoever asks for it by name."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    asked = [Path(str(arg).split("::")[0]).resolve() for arg in config.args]
    if any(path == HERE or HERE in path.parents for path in asked):
        raise pytest.UsageError(f"{HERE.name}: needs TRITON_INTERPRET=1 in the environment")
    return collection_path == HERE or HERE in collection_path.parents


@pytest.fixture(scope="session", autouse=True)
def _device_arithmetic() -> Iterator[None]:
    """On a device inf - inf is a NaN and 1 / 0 an inf, and nobody is warned."""
    with np.errstate(all="ignore"):
        yield
