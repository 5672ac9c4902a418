"""The benchmark of the kernels runs where there is nothing but numpy, torch and triton."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

PROGRAM = """
import importlib.machinery, runpy, sys
import numpy, torch, triton
before = {name.split(".")[0] for name in sys.modules}

class Nothing:
    '''Refuses what such a machine does not have. torch looks for optional packages by itself.'''
    def find_spec(self, name, path=None, target=None):
        top, floors = name.split(".")[0], name.split(".")[:2]
        known = top in before or top in sys.stdlib_module_names or top == "benchmarks"
        if top == "midstream":
            known = floors in (["midstream"], ["midstream", "kernels"])
        if not known:
            frame = sys._getframe(1)
            while frame.f_globals.get("__name__", "").startswith("importlib"):
                frame = frame.f_back
            asking = frame.f_globals.get("__name__", "").split(".")[0]
            if asking not in ("torch", "triton", "numpy"):
                print("refused", name, "for", asking, file=sys.stderr)
            raise ModuleNotFoundError(name=name)

sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.meta_path.insert(0, Nothing())
if EXTRA:
    __import__(EXTRA)
sys.argv = ["benchmarks.kernels", *ARGUMENTS]
runpy.run_module("benchmarks.kernels", run_name="__main__")
"""


def _run(*arguments: str, extra: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("EXTRA", repr(extra)).replace("ARGUMENTS", repr(arguments))
    environment = {**os.environ, "PYTHONPATH": "build/path", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        timeout=280,
    )


@pytest.fixture(scope="module", autouse=True)
def links() -> None:
    subprocess.run(["make", "--silent", "kernels-path"], cwd=REPOSITORY, check=True)


def test_the_benchmark_runs_with_numpy_torch_and_triton_alone(tmp_path: Path) -> None:
    done = _run("--rows", "1", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0 and "refused" not in done.stderr, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"machine", "tables"} == set(found) and len(found["tables"]) >= 2
    assert "| B" in done.stdout


def test_help_teaches() -> None:
    done = _run("--help")
    assert done.returncode == 0
    for told in ("examples", "make kernels-path", "% floor", "--rows", "--dtype", "--json"):
        assert told in done.stdout


@pytest.mark.parametrize("extra", ["pydantic", "midstream.middleware.law", "transformers"])
def test_what_is_not_there_is_refused(extra: str) -> None:
    """Negative control."""
    done = _run("--help", extra=extra)
    assert done.returncode != 0 and f"refused {extra[:8]}" in done.stderr
