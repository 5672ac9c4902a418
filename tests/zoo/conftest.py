"""The zoo's modules for its tests: they are scripts beside the tests, not an installed package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ZOO = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def load_zoo() -> Iterator[Callable[[str], ModuleType]]:
    """Import a module of tests/zoo by the name that its scripts use."""
    before = set(sys.modules)
    sys.path.insert(0, str(ZOO))
    yield importlib.import_module
    sys.path.remove(str(ZOO))
    for name in set(sys.modules) - before:
        path = getattr(sys.modules[name], "__file__", None)
        if path and Path(path).is_relative_to(ZOO):
            del sys.modules[name]


@pytest.fixture(scope="session")
def model_folders() -> dict[str, Path]:
    """The committed models by name."""
    from midstream.adapters.embedded import embedded_model_path

    return {
        "general": embedded_model_path(),
        "draft": ZOO / "models" / "draft",
        "second": ZOO / "models" / "second",
    }


@pytest.fixture(scope="session")
def suite_folder() -> Path:
    """The held-out suite."""
    return ZOO / "tasks"
