"""Where a model or a strategy comes from: the package, a folder, or the Hugging Face Hub."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from midstream.adapters.embedded import embedded_model_path
from midstream.middleware.errors import InputError

STRATEGY_FILE = "strategy.json"

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MODEL_FILES = [
    "*.json",
    "*.safetensors",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
]


def model_folder(source: str | PathLike[str]) -> Path:
    """The folder of a model: "embedded", a folder that holds config.json, or `org/name` of the Hub.

    From the Hub it takes settings, tokenizer and safetensors, no code, and keeps them in the Hub's
    cache; what is in the cache serves without a connection. A folder goes before a repository of
    the same name. Raises InputError where there is no such model, or the Hub can't be reached and
    the cache does not hold it.
    """
    if source == "embedded":
        return embedded_model_path()
    accepted = "'embedded', a folder that holds config.json, or a repository of the Hub (org/name)"
    path = Path(source)
    if not path.is_dir():
        path = _from_hub("model", str(source), _MODEL_FILES, accepted)
    if not (path / "config.json").is_file():
        raise InputError("model", f"{source} (no config.json in it)", accepted)
    return path


def strategy_file(source: str | PathLike[str]) -> Path:
    """The file of a strategy: one, or strategy.json in a folder or in `org/name` of the Hub.

    Raises InputError as `model_folder` does.
    """
    accepted = f"a file, or a folder or repository of the Hub (org/name) that holds {STRATEGY_FILE}"
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        path = _from_hub("strategy", str(source), [STRATEGY_FILE], accepted)
    if not (path / STRATEGY_FILE).is_file():
        raise InputError("strategy", f"{source} (no {STRATEGY_FILE} in it)", accepted)
    return path / STRATEGY_FILE


def _from_hub(argument: str, source: str, files: list[str], accepted: str) -> Path:
    """The folder of a repository's snapshot with those files."""
    if not _REPOSITORY.fullmatch(source):
        raise InputError(argument, f"{source} (there is no such place)", accepted)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        got = f"{source} (huggingface-hub is not installed)"
        raise InputError(argument, got, f"{accepted}, with midstream[transformers]") from error
    try:
        return Path(snapshot_download(source, allow_patterns=files))
    except LocalEntryNotFoundError as error:
        got = f"{source} (no such folder; the Hub can't be reached, its cache does not hold it)"
        raise InputError(argument, got, accepted) from error
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        got = f"{source} (no such folder; the Hub answers: {reason})"
        raise InputError(argument, got, accepted) from error
