"""The folders are floors: a file imports its own floor or a lower one."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BELOW = {
    "proto": set(),
    "kernels": set(),
    "middleware": {"kernels"},
    "logits_processors": {"kernels", "middleware"},
    "adapters": {"proto", "kernels", "middleware", "logits_processors"},
}
NO_INIT = ("kernels", "adapters", "proto")
"""A regular package of one of these names elsewhere on the path must win over the folder."""


def _files() -> list[Path]:
    return [path for floor in BELOW for path in sorted((REPOSITORY / floor).rglob("*.py"))]


def _upward(floor: str, source: str) -> list[str]:
    """Imports of a floor that lies above, relative ones, and those of a folder by its bare name."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                wrong.append(f"relative import, line {node.lineno}")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] in BELOW:
                wrong.append(f"bare {name}, line {node.lineno}")
            above = parts[0] == "midstream" and len(parts) > 1 and parts[1] in BELOW
            if above and parts[1] not in BELOW[floor] | {floor}:
                wrong.append(f"{name}, line {node.lineno}")
    return wrong


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_imports_never_run_up(path: Path) -> None:
    floor = path.relative_to(REPOSITORY).parts[0]
    assert not _upward(floor, path.read_text())


def test_an_arrow_that_runs_up_is_caught() -> None:
    assert _upward("kernels", "from midstream.middleware.law import Law")
    assert _upward("middleware", "import midstream.adapters.cli")
    assert _upward("middleware", "from midstream import adapters")
    assert _upward("adapters", "from .cli import main")
    assert _upward("adapters", "from kernels.row import Row")
    assert not _upward("adapters", "from midstream.kernels.row import Row")


def test_folders_that_other_packages_are_named_like_have_no_init() -> None:
    for floor in NO_INIT:
        assert not (REPOSITORY / floor / "__init__.py").exists()


def test_every_package_is_listed_and_typed() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = set(settings["packages"])
    found = {
        "midstream." + ".".join(path.parent.relative_to(REPOSITORY).parts) for path in _files()
    }
    assert found == listed
    for floor, folder in settings["package-dir"].items():
        assert (REPOSITORY / folder / "py.typed").exists(), floor
