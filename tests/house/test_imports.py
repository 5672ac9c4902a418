"""What an import costs, and that a foreign package of a folder's name is found first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch", "triton", "transformers", "tokenizers", "vllm", "grpc", "llguidance", "outlines",
    "outlines_core", "typer", "rich", "matplotlib", "huggingface_hub", "google",
}  # fmt: skip


def _loaded(module: str) -> set[str]:
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "midstream.kernels.row",
        "midstream.kernels.masked_sampling",
        "midstream.kernels.fusion",
        "midstream.kernels.next_byte",
        "midstream.kernels.verify_chain",
        "midstream.kernels.verify_tree",
        "midstream.middleware",
        "midstream.middleware.vocabulary",
        "midstream.middleware.constraints",
        "midstream.middleware.sampling",
        "midstream.middleware.smc",
        "midstream.middleware.segments",
        "midstream.middleware.strategy",
        "midstream.adapters.embedded",
    ],
)
def test_core_modules_load_numpy_and_pydantic_alone(module: str) -> None:
    assert not _loaded(module) & HEAVY


def test_the_check_sees_a_heavy_import() -> None:
    assert "llguidance" in _loaded("llguidance") & HEAVY


@pytest.mark.parametrize("name", ["kernels", "adapters"])
def test_a_foreign_package_of_the_same_name_wins(tmp_path: Path, name: str) -> None:
    """Even behind the repository's root on the path: transformers imports a package `kernels`."""
    decoy = tmp_path / name
    decoy.mkdir()
    (decoy / "__init__.py").write_text("DECOY = True\n")
    code = (
        f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(tmp_path)!r}]; "
        f"import {name}; assert {name}.DECOY; import midstream.{name}; print('found')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == "found", done.stderr
