"""Messages of every kind, good and bad, and a server that neither breaks nor draws what it may not.

`FUZZ_SECONDS` in the environment says how long; by default hypothesis has 40 s.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import Phase

from midstream.adapters.sidecar.metrics import Metrics
from midstream.middleware.constraints import Regex
from midstream.middleware.strategy import Strategy

SECONDS = float(os.environ.get("FUZZ_SECONDS", "40"))
KINDS = ["generate", "process"]


@pytest.fixture(scope="module")
def serving() -> Iterator[Any]:
    """The modules in `fuzzing/`, which are those of a program too."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    serving = importlib.import_module("fuzzing.serving")
    assert list(serving.FUZZ) == KINDS
    yield serving
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def target(serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serving.running(tmp_path_factory.mktemp("fuzz")) as target:
        yield target


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_sent_the_server_answers_within_the_protocol(
    serving: Any, target: Any, kind: str
) -> None:
    deadline = time.monotonic() + SECONDS / 2
    good, rounds, before = target.once(), 0, dict(target.ended)
    while time.monotonic() < deadline:
        hypothesis.seed(rounds)(serving.fuzzer(target, kind))()
        assert target.once() == good, "the server answers as it did"
        rounds += 1
    ended = {code: count - before.get(code, 0) for code, count in target.ended.items()}
    assert ended["OK"] > rounds and ended["INVALID_ARGUMENT"] > rounds, ended


BROKEN: Mapping[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a constraint that is lost": lambda patch: patch.setattr(
        Strategy, "build_constraint", lambda strategy: Regex('[ab"]*')
    ),
    "a fault": lambda patch: patch.setattr(Metrics, "draw", _raises),
}


def _raises(*arguments: object) -> None:
    raise RuntimeError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken", list(BROKEN))
def test_a_broken_server_is_found_out(
    serving: Any, target: Any, kind: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    BROKEN[broken](monkeypatch)
    with pytest.raises(AssertionError):
        hypothesis.seed(0)(serving.fuzzer(target, kind, phases=[Phase.generate]))()
