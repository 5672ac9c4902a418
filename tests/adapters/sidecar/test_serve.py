"""`midstream serve` as a process, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from midstream.adapters.cli.app import run
from midstream.adapters.sidecar.client import Client, SidecarError
from midstream.adapters.sidecar.limits import Limits

COMMAND = [sys.executable, "-P", "-m", "midstream.adapters.cli", "serve"]
SECONDS = 120.0
"""No test waits longer for a process."""

SECRET = "zanzibar"
NO_PORT = ("--listen", "none", "--unix", "auto")
DIGITS = {"constraint": {"regex": "[0-9]{2,4}"}, "limits": {"max_new_tokens": 12}}


@dataclass
class Process:
    """A server. line: what it printed when it was ready."""

    process: subprocess.Popen[str]
    log_path: Path
    line: str = ""

    @property
    def log(self) -> list[dict[str, object]]:
        """Its log so far."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def client(self) -> Client:
        """As the line that it printed makes it."""
        names: dict[str, Client] = {}
        exec(self.line, names)
        return names["client"]

    def end(self, number: int) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


Begin = Callable[..., Process]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts `midstream serve` with options, and waits until it is ready."""
    begun: list[subprocess.Popen[str]] = []

    def start(*options: str, wait: bool = True) -> Process:
        log_path = tmp_path / f"log-{len(begun)}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with log_path.open("w") as log:
            process = subprocess.Popen(
                [*COMMAND, *options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=tmp_path,
            )
        begun.append(process)
        killer = threading.Timer(SECONDS, process.kill)
        killer.start()
        assert process.stdout is not None
        line = process.stdout.readline() if wait else ""
        killer.cancel()
        assert line or not wait, log_path.read_text()
        return Process(process, log_path, line)

    yield start
    for process in begun:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_the_line_that_is_printed_makes_a_client(begin: Begin) -> None:
    server = begin("--listen", "127.0.0.1:0", "--unix", "auto")
    assert server.line.startswith("from midstream.adapters.sidecar.client import Client; client = ")
    with server.client() as client:
        assert [model.model for model in client.models()] == ["embedded"]
        outcome = client.generate(f"{SECRET} 12 + 30 = ", strategy=DIGITS)
        assert outcome.status == "finished"
        assert outcome.particles[0].text.isdigit()
    assert server.end(signal.SIGTERM) == 0
    events = [line["event"] for line in server.log]
    assert events[:1] == ["listening"]
    assert events[-2:] == ["draining", "ended"]
    assert {"ready", "call"} <= set(events)
    assert SECRET not in server.log_path.read_text()
    assert server.process.stdout is not None
    assert server.process.stdout.read() == "", "one line, and nothing else"


def test_a_token_and_the_unix_socket_alone(begin: Begin, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    path = tmp_path / "own" / "socket"
    server = begin("--listen", "none", "--unix", str(path), "--token-file", str(token))
    with server.client() as client:
        assert client.models()[0].is_default
    with Client(f"unix:{path}") as stranger, pytest.raises(SidecarError) as caught:
        stranger.models()
    assert caught.value.code == "UNAUTHENTICATED"
    assert server.end(signal.SIGINT) == 130
    assert not path.parent.exists()
    last = server.log_path.read_text().splitlines()[-1]
    assert last == "midstream: interrupted"


def test_sigterm_under_load_lets_calls_finish(begin: Begin) -> None:
    server = begin("--listen", "127.0.0.1:0", "--grace", "60")
    statuses: list[str] = []
    long = {"smc": {"particles": 8}, "limits": {"max_new_tokens": 60}}

    def call(seed: int) -> None:
        try:
            outcome = client.generate("Once upon", strategy={**long, "seed": seed})
            statuses.append(outcome.status)
        except SidecarError as error:
            statuses.append(error.code)

    with server.client() as client:
        calls = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
        for thread in calls:
            thread.start()
        time.sleep(0.3)
        code = server.end(signal.SIGTERM)
        for thread in calls:
            thread.join(SECONDS)
    assert code == 0
    draining = next(line for line in server.log if line["event"] == "draining")
    assert isinstance(draining["running"], int) and draining["running"] > 0
    assert len(statuses) == 6
    assert statuses.count("UNAVAILABLE") <= 6 - draining["running"]
    assert set(statuses) <= {"finished", "length", "UNAVAILABLE"}


def test_after_sigkill_it_starts_again_at_the_same_places(begin: Begin, tmp_path: Path) -> None:
    path = tmp_path / "own" / "socket"
    first = begin("--listen", "127.0.0.1:0", "--unix", str(path))
    port = str(first.log[0]["addresses"]).split("'")[1]
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    assert path.exists()
    second = begin("--listen", port, "--unix", str(path))
    for target in (port, f"unix:{path}"):
        with Client(target) as client:
            assert client.generate("1 + 1 = ", strategy=DIGITS).status == "finished"
    assert second.end(signal.SIGTERM) == 0


def test_sigterm_while_the_models_load_ends_it(begin: Begin) -> None:
    server = begin("--listen", "127.0.0.1:0", wait=False)
    deadline = time.monotonic() + SECONDS
    while not server.log_path.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.end(signal.SIGTERM) == 0
    assert "ready" not in [line["event"] for line in server.log]
    assert server.process.stdout is not None
    assert server.process.stdout.read() == ""


def test_ready_within_5_s_of_the_imports(tmp_path: Path) -> None:
    """What Python itself takes to import torch, transformers and grpc is not counted."""
    program = """
import asyncio, time
import midstream.adapters.cli.model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from midstream.adapters.sidecar.assembly import sidecar
from midstream.adapters.sidecar.settings import ServerSettings

async def main():
    begin = time.perf_counter()
    server = sidecar(ServerSettings(listen=None, unix=True), {"embedded": "embedded"})
    await server.start()
    print(time.perf_counter() - begin)
    await server.drain(0.0)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 5.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "0.0.0.0:50051"], "--listen: got 0.0.0.0:50051, off loopback"),
        (["--listen", "50051"], "--listen: got 50051; accepted: host:port"),
        (["--listen", "none"], "--listen: got no address"),
        (
            ["--listen", "none", "--unix", "/nowhere/at/all/socket"],
            "--unix: got /nowhere/at/all (No such file",
        ),
        (["--tls-key", "key.pem"], "--tls-certificate: got one without the other"),
        (["--token-file", "/nowhere"], "--token-file: got /nowhere (No such file"),
        (["--metrics", "0.0.0.0:9090"], "--metrics: got 0.0.0.0:9090, off loopback"),
        (["--log-level", "loud"], "--log-level: got loud; accepted: one of debug"),
        (["--grace", "-1"], "--grace: got -1.0"),
        (["--limit", "abacus=1"], "--limit: got abacus=1; accepted: NAME=NUMBER"),
        (["--limit", "streams=many"], "--limit: got streams=many; accepted: streams=a whole"),
        (["--limit", "streams=0"], "--limit streams: got 0; accepted: a number above 0"),
        (["--model", "a b=embedded"], "--model: got a b"),
        (["--model", "nowhere"], "--model: got nowhere"),
        (["--vllm-url", "http://127.0.0.1:9"], "--vllm-url: got http://127.0.0.1:9; accepted"),
        (["--vllm-tokenizer", "x"], "--vllm-url: got none; accepted: http://HOST:PORT"),
        (
            ["--vllm-url", "http://127.0.0.1:9", "--vllm-tokenizer", "/nowhere", *NO_PORT],
            "--vllm-tokenizer: got /nowhere",
        ),
        (["--model", "x=/nowhere", "--listen", "127.0.0.1:0"], "--model: got /nowhere"),
    ],
)
def test_bad_options_are_one_line_that_teaches(
    options: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *options]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"midstream: error: {said}")


def test_help_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--listen", "--unix", "--token-file", "--limit", "--grace", "Examples"):
        assert option in shown
    assert run(["serve", "--limit", "list"]) == 0
    assert f"streams={Limits().streams}" in capsys.readouterr().out.splitlines()


def test_without_the_extra_one_line_names_it() -> None:
    program = (
        "import sys; sys.modules['grpc'] = None; sys.argv = ['midstream', 'serve']\n"
        "from midstream.adapters.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'midstream[sidecar]'" in done.stderr
