"""Every example that the README and the pages print is run as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in _BLOCK.findall(page.read_text()) if found == language]


def _environment() -> dict[str, str]:
    folder = str(Path(sys.executable).parent)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **offline, "PATH": folder + os.pathsep + os.environ["PATH"]}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    """The blocks of one page are one program: later ones may use what earlier ones made."""
    blocks = _blocks(page, "python")
    if not blocks:
        return
    program = tmp_path / "example.py"
    program.write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=_environment(),
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_command_lines_run(page: Path, tmp_path: Path) -> None:
    """`bash` blocks are commands of midstream; what sets a machine up is `sh` and not run here."""
    for block in _blocks(page, "bash"):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=_environment(),
            timeout=240,
        )
        assert done.returncode == 0, block + done.stderr[-3000:]


def test_there_are_examples() -> None:
    assert _blocks(REPOSITORY / "README.md", "python")
    assert _blocks(REPOSITORY / "README.md", "bash")
