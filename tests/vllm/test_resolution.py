"""Our ranges and those of each vLLM that we name have versions in common. Nothing is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _needed_by(version: str) -> list[Requirement]:
    """What a vLLM asks for, from its metadata alone."""
    flags = ["--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-"]
    report = json.loads(_pip("install", *flags, f"vllm=={version}"))
    lines = report["install"][0]["metadata"]["requires_dist"]
    return [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate()]


def _ours() -> list[Requirement]:
    """The core, and every extra that may stand beside an engine."""
    extras: dict[str, Any] = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *extras["vllm"], *extras["transformers"]]
    return [Requirement(line) for line in [*lines, *extras["sidecar"]]]


@cache
def _released(name: str) -> list[Version]:
    (line,) = re.findall(r"Available versions: (.*)", _pip("index", "versions", name))
    return [Version(version) for version in line.split(", ")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.33.0"])
def test_a_version_satisfies_both(version: str) -> None:
    theirs: dict[str, list[Requirement]] = {}
    for requirement in _needed_by(version):
        theirs.setdefault(requirement.name.lower().replace("_", "-"), []).append(requirement)
    shared = 0
    for ours in _ours():
        name = ours.name.lower().replace("_", "-")
        for their in theirs.get(name, []):
            shared += 1
            common = ours.specifier & their.specifier
            assert any(common.contains(v) for v in _released(name)), f"{ours} and {their}"
    assert shared >= 5
    assert any(ours.name == "vllm" and ours.specifier.contains(version) for ours in _ours())
