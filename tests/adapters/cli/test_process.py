"""The command line as a process: its streams, its exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-P", "-m", "midstream.adapters.cli"]


def _environment() -> dict[str, str]:
    """ASCII is the least that a terminal has."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "ascii"}
    return {**os.environ, **settings}


def _run(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        env=_environment(),
        cwd=folder,
        timeout=240,
    )


def test_json_alone_on_stdout_and_nothing_on_stderr(model_folder: Path, tmp_path: Path) -> None:
    arguments = ["generate", "-m", str(model_folder), "-p", "Hello", "--regex", "[0-9]{4}"]
    done = _run([*arguments, "-n", "2", "--json"], tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(json.loads(done.stdout)["particles"]) == 2
    assert done.stdout.count("\n") == 1


def test_a_table_on_a_stream_that_knows_no_accents(model_folder: Path, tmp_path: Path) -> None:
    done = _run(["generate", "-m", str(model_folder), "-p", "Hello", "--choice", "né"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"n\xe9" in done.stdout


def test_bad_input_is_no_traceback(tmp_path: Path) -> None:
    done = _run(["generate", "-p", "Hello", "--regex", "("], tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("midstream: error: pattern: got ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path) -> None:
    """The process reads a schema from a pipe that nobody writes to, so it is known where it is."""
    pipe = tmp_path / "schema"
    os.mkfifo(pipe)
    arguments = ["generate", "-p", "Hello", "--json-schema", f"@{pipe}"]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        cwd=tmp_path,
    ) as process:
        writer = os.open(pipe, os.O_WRONLY)  # returns when the process has opened the pipe
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
        os.close(writer)
    assert process.returncode == 130
    assert out == ""
    assert err == "midstream: interrupted\n"


def test_ctrl_c_within_a_run(
    midstream: Callable[..., Any], model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import midstream.adapters.cli.generation as generation

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "run", interrupted)
    called = midstream("generate", "-m", model_folder, "-p", "Hello", "--regex", "a")
    assert (called.code, called.out, called.err) == (130, "", "midstream: interrupted\n")


def test_version_and_help(midstream: Callable[..., Any]) -> None:
    assert midstream("--version").out == f"midstream {version('midstream')}\n"
    general = midstream("--help")
    assert general.code == 0
    assert "generate" in general.out
    assert "demo" in general.out
    called = midstream("generate", "--help")
    assert called.code == 0
    for option in ("--prompt", "--strategy", "--json-schema", "--truncation", "--particles"):
        assert option in called.out
    assert "Examples" in called.out
    assert r"--regex 'San .*|Rome'" in called.out
    empty = midstream()
    assert empty.code == 2
    assert empty.err == ""
    assert "Commands" in empty.out


@pytest.mark.parametrize("absent", ["typer", "rich"])
def test_without_the_extra_one_line_names_it(absent: str) -> None:
    program = (
        f"import sys; sys.modules[{absent!r}] = None; sys.argv = ['midstream', 'demo']\n"
        "from midstream.adapters.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "pip install 'midstream[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1
