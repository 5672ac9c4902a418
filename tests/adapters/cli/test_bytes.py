"""`midstream bytes`: the law of the next byte, bits per byte, a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midstream.adapters.cli.bytes_report import byte_name
from midstream.adapters.cli.model import load_model
from midstream.middleware.bytes.model import ByteModel

Call = Callable[..., Any]
TEXT = "Hello wor"


def asked(midstream: Call, folder: Path, *arguments: object) -> dict[str, Any]:
    called = midstream("bytes", "-m", folder, "--json", *arguments)
    assert called.code == 0, called.err
    assert called.err == "" and called.out.count("\n") == 1
    value: dict[str, Any] = json.loads(called.out, parse_constant=pytest.fail)
    return value


def test_json_is_the_law_and_the_score(midstream: Call, model_folder: Path) -> None:
    found = asked(midstream, model_folder, "-p", TEXT)
    model = ByteModel(load_model(str(model_folder)).host)
    assert np.allclose(found["next"], model.next_byte(TEXT.encode()), rtol=1e-6, atol=1e-12)
    assert sum(found["next"]) == pytest.approx(1.0) and len(found["next"]) == 257
    assert found["log_p"] == pytest.approx(model.score(TEXT.encode()), rel=1e-6)
    assert found["bytes"] == len(TEXT) == len(found["surprise_bits"])
    assert found["bits_per_byte"] == pytest.approx(sum(found["surprise_bits"]) / len(TEXT))
    assert found["bits_per_byte_prefix"] <= found["bits_per_byte_tokens"] + 1e-9
    assert found["target"] == "canonical" and found["method"] == "cover"
    assert found["status"] == "running" and found["undecided"] is None


def test_all_token_strings_by_a_beam(midstream: Call, model_folder: Path) -> None:
    canonical = asked(midstream, model_folder, "-p", TEXT)
    every = asked(midstream, model_folder, "-p", TEXT, "--target", "all", "--beam", 4)
    assert every["method"] == "beam" and every["log_pruned"] != "-Infinity"
    assert every["bits_per_byte_tokens"] is None
    most = np.logaddexp(every["log_mass"], every["log_pruned"])
    assert canonical["log_mass"] <= most + 1e-6


def test_temperatures_are_of_tokens_or_of_bytes(midstream: Call, model_folder: Path) -> None:
    plain, tokens, byte = (
        np.array(asked(midstream, model_folder, "-p", TEXT, *more)["next"])
        for more in ((), ("--temperature", 0.5), ("--byte-temperature", 0.5))
    )
    assert np.allclose(byte, plain**2 / (plain**2).sum(), rtol=1e-6, atol=1e-12)
    assert not np.allclose(tokens, byte, rtol=1e-3, atol=1e-6)


def test_the_page_and_the_empty_text(midstream: Call, model_folder: Path) -> None:
    called = midstream("bytes", "-m", model_folder, "-p", TEXT, "--top", 3)
    assert called.code == 0, called.err
    head, *rest = called.out.splitlines()
    assert head.split() == ["byte", "p", "bits"] and rest[3] == ""
    p, bits = (float(value) for value in rest[0].split()[-2:])
    assert bits == pytest.approx(-math.log2(p), abs=0.01)
    assert "bits per byte: stepwise" in called.out and "tokens" in called.out
    empty = midstream("bytes", "-m", model_folder, "-p", "")
    assert empty.code == 0 and "bits per byte" not in empty.out
    assert [byte_name(b) for b in (65, 32, 10, 255, 256)] == ["'A'", "' '", "0x0a", "0xff", "end"]


def test_a_file_and_bytes_that_are_no_text(
    midstream: Call, model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"ab\xff\xfe")
    found = asked(midstream, model_folder, "-f", file)
    assert found["status"] == "dead" and found["log_p"] == "-Infinity"
    assert sum(found["next"]) == 0.0
    page = midstream("bytes", "-m", model_folder, "-f", file)
    assert page.code == 0 and "probability 0" in page.out
    every = asked(midstream, model_folder, "-f", file, "--target", "all")
    assert every["status"] == "running" and every["log_p"] < 0


def test_the_picture(midstream: Call, model_folder: Path, tmp_path: Path) -> None:
    for text in (TEXT, "", "$x$ " * 50):
        path = tmp_path / "surprise.png"
        called = midstream("bytes", "-m", model_folder, "-p", text, "--plot", path)
        assert called.code == 0, called.err
        assert path.read_bytes().startswith(b"\x89PNG")
        path.unlink()


def test_help_teaches(midstream: Call) -> None:
    called = midstream("bytes", "--help")
    words = " ".join(called.out.split())
    for taught in ("lower bound", "stepwise", "--target all sums over every string"):
        assert taught in words


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "--prompt: got neither"),
        (("-p", "a", "-f", "b"), "--prompt: got both"),
        (("-f", "/no/such"), "--file: got /no/such"),
        (("-p", "a", "--target", "some"), "--target: got some"),
        (("-p", "a", "--beam", 3), "--beam: got 3"),
        (("-p", "a", "--plot", "x.pdf"), "--plot: got x.pdf"),
        (("-p", "a", "--temperature", 0), "token_temperature: got 0"),
        (("-p", "word " * 600), "--prompt: got"),
    ],
)
def test_bad_input(
    midstream: Call, model_folder: Path, arguments: tuple[object, ...], complaint: str
) -> None:
    called = midstream("bytes", "-m", model_folder, *arguments)
    assert called.refused().startswith(complaint)
