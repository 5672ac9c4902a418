"""Models and strategies from the package, a folder, or the Hub's cache, and clear errors."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.model_sources import model_folder, strategy_file
from midstream.middleware.errors import InputError

COMMIT = "0" * 40


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub, and no connection; the cache's folder."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def cached(cache: Path, name: str, files: dict[str, str]) -> Path:
    """Put a repository into the cache as the Hub's client lays it out."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for file, content in files.items():
        (snapshot / file).write_text(content)
    return snapshot


def test_the_embedded_model_and_a_folder(tmp_path: Path) -> None:
    assert model_folder("embedded") == embedded_model_path()
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path == model_folder(str(tmp_path))
    (tmp_path / "strategy.json").write_text("{}")
    assert strategy_file(tmp_path) == tmp_path / "strategy.json"
    assert strategy_file(tmp_path / "config.json") == tmp_path / "config.json"


def test_a_repository_that_is_in_the_cache_needs_no_connection(offline: Path) -> None:
    files = {"config.json": "{}", "strategy.json": "{}"}
    snapshot = cached(offline, "some-org/some-model", files)
    assert model_folder("some-org/some-model") == snapshot
    assert strategy_file("some-org/some-model") == snapshot / "strategy.json"


@pytest.mark.parametrize(
    ("find", "argument"), [(model_folder, "model"), (strategy_file, "strategy")]
)
def test_what_is_nowhere_is_named(
    find: Any, argument: str, offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source, reason in (
        ("some-org/absent", "can't be reached"),
        (str(tmp_path / "absent"), "no such place"),
        ("one-word", "no such place"),
        ("a/b/c", "no such place"),
        ("../up/", "no such place"),
        (tmp_path, "in it"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            find(source)
        assert caught.value.argument == argument
        assert "org/name" in caught.value.accepted and "\n" not in str(caught.value)

    def refuse(*args: Any, **kwargs: Any) -> None:
        answer: Any = SimpleNamespace(headers={}, request=None)
        raise RepositoryNotFoundError("404\nmore", response=answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="the Hub answers: 404"):
        find("some-org/private")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="not installed"):
        find("some-org/any")
