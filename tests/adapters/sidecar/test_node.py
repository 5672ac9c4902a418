"""The Node example, from `npm ci`, against a real server: both kinds of use."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midstream.middleware.constraints import Regex
from midstream.middleware.smc import run
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

REPOSITORY = Path(__file__).resolve().parents[3]
TABLE: dict[str, Any] = json.loads((REPOSITORY / "examples/node/table.json").read_text())
VOCABULARY = Vocabulary([token.encode() for token in TABLE["tokens"]], eos_ids=TABLE["eos_ids"])
MATCHER = Regex(TABLE["regex"]).compile(VOCABULARY)
RUNS = 400
SECONDS = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("node") is None or shutil.which("npm") is None,
        reason="node and npm are not installed",
    ),
]


def row_after(tokens: tuple[int, ...]) -> list[float]:
    row: list[float] = TABLE["after"][tokens[-1]] if tokens else TABLE["first"]
    return row


class TableRows:
    """The model of engine.mjs, as `Rows`."""

    def __init__(self, texts: list[tuple[int, ...]]) -> None:
        self.texts = texts
        self.logits = np.array([row_after(tokens) for tokens in texts], np.float32)

    def advance(self, parents: Any, tokens: Any) -> TableRows:
        grown = zip(parents, tokens, strict=True)
        return TableRows([(*self.texts[parent], token) for parent, token in grown])


def exact_evidence() -> float:
    """P(the text satisfies the constraint and ends within the limit), over all token strings."""
    total = 0.0
    open_ones: list[tuple[tuple[int, ...], Any, float]] = [((), MATCHER.start(), 1.0)]
    for _ in range(TABLE["max_new_tokens"]):
        longer = []
        for tokens, state, mass in open_ones:
            logits = np.array(row_after(tokens), np.float64)
            p = np.exp(logits) / np.exp(logits).sum()
            for token in range(len(VOCABULARY)):
                after = MATCHER.advance(state, token)
                if after is None:
                    continue
                if token in VOCABULARY.eos_ids:
                    total += mass * p[token]
                else:
                    longer.append(((*tokens, token), after, mass * p[token]))
        open_ones = longer
    return total


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages, beside a copy of the protos."""
    root = tmp_path_factory.mktemp("node")
    shutil.copytree(REPOSITORY / "proto/midstream", root / "proto/midstream")
    folder = root / "examples/node"
    ignored = shutil.ignore_patterns("node_modules")
    shutil.copytree(REPOSITORY / "examples/node", folder, ignore=ignored)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `midstream serve` listens."""
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("server") / "private/socket"
    options = ["--listen", "none", "--unix", str(path), "--log-level", "error"]
    command = [sys.executable, "-P", "-m", "midstream.adapters.cli", "serve", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()  # a server that does not begin ends, and so does this
            assert str(path) in line
            yield f"unix:{path}"
        finally:
            server.terminate()
            server.wait(SECONDS)


def node(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["node", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)


def test_a_service_generates(example: Path, address: str) -> None:
    done = node(example, "generate.mjs", address)
    assert done.returncode == 0, done.stderr
    objects = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    *particles, last = objects
    assert len(particles) == 4
    finished = [each for each in particles if each["status"] == "SEQUENCE_STATUS_FINISHED"]
    assert finished
    for each in finished:
        year, month, day = each["text"].split("-")
        assert (len(year), len(month), len(day)) == (4, 2, 2)
        assert (year + month + day).isdigit()
    weights = [math.exp(each["log_weight"]) for each in finished]
    assert last["log_evidence"] == pytest.approx(math.log(sum(weights) / 4), abs=1e-9)
    assert "step 0: " in done.stdout


def test_a_service_is_told_what_is_wrong(example: Path, address: str) -> None:
    done = node(example, "generate.mjs", address, "x", "(")
    assert done.returncode == 1
    assert done.stderr.startswith("strategy.constraint.regex: got")


def test_an_engine_s_evidence_is_exact(example: Path, address: str) -> None:
    done = node(example, "engine.mjs", address, str(RUNS))
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["seed"] for each in runs] == list(range(RUNS))
    for each in runs:  # each is the run in process, bit for bit
        strategy = Strategy(
            smc={"particles": 4},
            seed=each["seed"],
            limits={"max_new_tokens": TABLE["max_new_tokens"]},
        )
        expected = run(TableRows([()]), MATCHER, **strategy.run_options())
        assert each["log_evidence"] == expected.log_evidence
        assert each["texts"] == [particle.text for particle in expected.particles]
    # and their mean is the exact value: false alarms at 4 standard errors, below 1e-4
    evidence = np.exp([each["log_evidence"] for each in runs])
    exact = exact_evidence()
    error = evidence.std(ddof=1) / math.sqrt(RUNS)
    assert abs(evidence.mean() - exact) < 4 * error
    assert error < 0.05 * exact
    # negative control: a quarter less would be found out
    assert abs(evidence.mean() - 0.75 * exact) > 4 * error
