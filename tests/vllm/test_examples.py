"""What the README and docs/vllm.md print about vLLM is run as printed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "docs" / "vllm.md"]
_BLOCK = re.compile(r"^```([\w -]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
pytestmark = pytest.mark.timeout(600)


def _blocks(page: Path, fence: str) -> list[str]:
    return [body for found, body in _BLOCK.findall(page.read_text()) if found == fence]


def _environment(model_path: Path) -> dict[str, str]:
    folder = str(Path(sys.executable).parent)
    path = folder + os.pathsep + os.environ["PATH"]
    return {**os.environ, "PATH": path, "MODEL": str(model_path), "KEY": "a-key-for-examples"}


def _run(program: str, environment: dict[str, str], cwd: Path) -> str:
    file = cwd / "example.py"
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, "-P", str(file)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_offline_examples(page: Path, model_path: Path, tmp_path: Path) -> None:
    blocks = _blocks(page, "python vllm")
    assert blocks
    assert "Rome" in _run("\n".join(blocks), _environment(model_path), tmp_path)


@pytest.fixture(params=PAGES, ids=lambda p: p.name)
def served(
    request: pytest.FixtureRequest, model_path: Path, tmp_path: Path
) -> Iterator[tuple[Path, Callable[[], str]]]:
    """The page's server, started by its own line."""
    page: Path = request.param
    (command,) = _blocks(page, "sh vllm")
    log = (tmp_path / "log").open("wb")
    environment = {**_environment(model_path), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    process = subprocess.Popen(
        ["bash", "-c", command],
        env=environment,
        stdout=log,
        stderr=log,
        cwd=tmp_path,
        start_new_session=True,
    )
    (port,) = re.findall(r"--port (\d+)", command)
    try:
        deadline = time.monotonic() + 280
        while time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.3)
        yield page, lambda: (tmp_path / "log").read_text()[-4000:]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def test_examples_of_the_server(
    served: tuple[Path, Callable[[], str]], model_path: Path, tmp_path: Path
) -> None:
    page, _ = served
    blocks = _blocks(page, "python vllm-server")
    assert blocks
    assert "Rome" in _run("\n".join(blocks), _environment(model_path), tmp_path)
