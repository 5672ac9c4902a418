"""Schemas and grammars made to hurt: each ends within seconds and 1 GiB, its child process too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REFUSED = {
    "nesting": "deep",
    "enum": "at most 4000000 characters",
    "maxItems": "not compiled within",
    "minItems": "not compiled within",
    "minItems in a grammar": "not compiled within",
    "anyOf within allOf": "too large",
    "multipleOf": "not compiled within",
    "patterns at once": "Regex",
    "parentheses": "deeply nested",
    "terminals twice": "too big",
    "loop": "no text",
}
SERVED = [
    "maxLength",
    "minLength",
    "arrays of two",
    "pattern",
    "words",
    "a window",
    "rules twice",
    "repetition",
    "ambiguity",
]


@pytest.mark.slow
def test_hostile_constraints_end_soon_and_small() -> None:
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hostile.py"))],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows: dict[str, list[Any]] = {
        row[0]: row[1:] for row in map(json.loads, run.stdout.splitlines())
    }
    assert len(rows) == 27
    for name, (taken, refused, outcome, mine, childs) in rows.items():
        assert taken < 10, name
        assert mine < 1024, name
        assert childs < 1024, name
        assert outcome != "slow", name
        if name in REFUSED:
            assert refused, name
            assert REFUSED[name] in outcome, name
        if name in SERVED:
            assert not refused, (name, outcome)
