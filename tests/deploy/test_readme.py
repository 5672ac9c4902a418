"""The README's gRPC section as one session of a shell, Node's part included."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 240

_BLOCK = re.compile(r"^```(bash|sh node)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    """From the block that starts the server to Node's."""
    text = (REPOSITORY / "README.md").read_text()
    found = _BLOCK.findall(text)
    start = next(i for i, (_, body) in enumerate(found) if body.startswith("midstream serve"))
    assert [language for language, _ in found[start:]] == ["bash", "sh node"]
    return [body for _, body in found[start:]]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None,
    reason="node and npm are not installed",
)
def test_the_section_runs_as_printed(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    shutil.copytree(REPOSITORY / "proto/midstream", tmp_path / "proto/midstream")
    ignored = shutil.ignore_patterns("node_modules")
    shutil.copytree(REPOSITORY / "examples/node", tmp_path / "examples/node", ignore=ignored)
    folder = str(Path(sys.executable).parent)
    path = folder + os.pathsep + os.environ["PATH"]
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(blocks())],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    posterior, *rest = done.stdout.splitlines()
    assert "'Rome': 0." in posterior
    assert "log_evidence" in rest[-1]
    assert any(
        f'"text":"{city}"' in line for line in rest for city in ("Rome", "Porto", "San Antonio")
    )
    deadline = time.monotonic() + 30
    while (tmp_path / "private/socket").exists():  # the trap has told the server to end
        assert time.monotonic() < deadline
        time.sleep(0.1)
