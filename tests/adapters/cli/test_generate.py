"""`midstream generate`: its JSON, its table, and how options and a strategy file go together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from midstream.adapters.cli.output import as_json, number, page
from midstream.adapters.cli.terminal import printable
from midstream.adapters.embedded import embedded_model_path
from midstream.middleware.particles import Particle, Prefix, SMCResult
from midstream.middleware.vocabulary import Vocabulary

Call = Callable[..., Any]


def _generate(midstream: Call, folder: Path, *arguments: object) -> dict[str, Any]:
    called = midstream("generate", "-m", folder, "-p", "Hello", "--json", *arguments)
    assert called.code == 0, called.err
    assert called.err == ""
    assert called.out.count("\n") == 1
    value: dict[str, Any] = json.loads(called.out, parse_constant=pytest.fail)
    return value


def test_json_is_one_object_of_the_promised_form(midstream: Call, model_folder: Path) -> None:
    found = _generate(
        midstream, model_folder, "--choice", "yes", "--choice", "no", "--particles", 3, "--seed", 5
    )
    assert list(found) == ["particles", "log_evidence", "sampler", "seed"]
    assert found["sampler"] == "mask"
    assert found["seed"] == 5
    assert len(found["particles"]) == 3
    vocabulary = Vocabulary.from_tokenizer(model_folder)
    for particle in found["particles"]:
        assert list(particle) == ["text", "token_ids", "log_weight", "status"]
        assert particle["status"] == "finished"
        assert particle["text"] in ("yes", "no")
        assert particle["token_ids"][-1] in vocabulary.eos_ids
        assert vocabulary.decode(particle["token_ids"]).decode() == particle["text"]
    weights = [math.exp(particle["log_weight"]) for particle in found["particles"]]
    assert found["log_evidence"] == pytest.approx(math.log(sum(weights) / 3))


def test_equal_seeds_give_equal_output_and_others_do_not(
    midstream: Call, model_folder: Path
) -> None:
    options = ("--regex", "[a-z]{20}", "-n", 2, "--max-new-tokens", 40)
    first, second, other = (
        _generate(midstream, model_folder, *options, "--seed", seed) for seed in (1, 1, 2)
    )
    assert first == second
    texts = [[particle["text"] for particle in found["particles"]] for found in (first, other)]
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        (("--regex", "[0-9]{3}"), re.compile(r"[0-9]{3}")),
        (("--json-schema", '{"enum": [12, true]}'), re.compile("12|true")),
        (("--grammar", 'start: "<" /[ab]{2}/ ">"'), re.compile("<[ab]{2}>")),
        (("--choice", "left", "--choice", "right"), re.compile("left|right")),
    ],
)
@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_every_constraint_with_both_samplers(
    midstream: Call,
    model_folder: Path,
    options: tuple[str, ...],
    accepted: re.Pattern[str],
    sampler: str,
) -> None:
    found = _generate(
        midstream, model_folder, *options, "--sampler", sampler, "--max-new-tokens", 8
    )
    assert found["sampler"] == sampler
    [particle] = found["particles"]
    assert particle["status"] == "finished"
    assert accepted.fullmatch(particle["text"])


def test_schema_and_grammar_from_files(midstream: Call, model_folder: Path, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"const": "héllo"}', encoding="utf-8")
    grammar.write_text('start: "up" | "down"\n', encoding="utf-8")
    found = _generate(midstream, model_folder, "--json-schema", f"@{schema}")
    assert found["particles"][0]["text"] == '"héllo"'
    found = _generate(midstream, model_folder, "--grammar", f"@{grammar}")
    assert found["particles"][0]["text"] in ("up", "down")


def test_without_a_constraint_any_text_will_do(midstream: Call, model_folder: Path) -> None:
    found = _generate(midstream, model_folder, "--max-new-tokens", 6, "--seed", 2)
    [particle] = found["particles"]
    assert particle["status"] == "length"
    assert len(particle["token_ids"]) == 6
    assert particle["log_weight"] == pytest.approx(0.0, abs=0.01)
    assert found["log_evidence"] == "-Infinity"


def test_options_override_the_file_field_by_field(
    midstream: Call, model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "strategy.json"
    strategy = {
        "constraint": {"regex": "[0-9]{2}"},
        "sampler": {"awrs": {"accepts": 3}},
        "smc": {"particles": 2},
        "seed": 4,
    }
    file.write_text(json.dumps(strategy), encoding="utf-8")
    found = _generate(midstream, model_folder, "--strategy", file)
    assert found["sampler"] == "awrs"
    assert found["seed"] == 4
    assert len(found["particles"]) == 2
    assert all(re.fullmatch("[0-9]{2}", each["text"]) for each in found["particles"])
    changed = ("--sampler", "mask", "--seed", 6, "--choice", "ab", "-n", 3)
    found = _generate(midstream, model_folder, "--strategy", file, *changed)
    assert found["sampler"] == "mask"
    assert found["seed"] == 6
    assert [each["text"] for each in found["particles"]] == ["ab"] * 3


def test_the_law_reaches_the_sampler(midstream: Call, model_folder: Path) -> None:
    """With top_k = 1 after the mask the seed decides nothing; before it, it kills."""
    options = ("--regex", "[a-j]", "--truncation", "after_mask", "--sampler", "mask")
    texts = {
        _generate(midstream, model_folder, *options, "--top-k", 1, "--seed", seed)["particles"][0][
            "text"
        ]
        for seed in range(8)
    }
    assert len(texts) == 1
    free = {
        _generate(midstream, model_folder, "--regex", "[a-j]", "--seed", seed)["particles"][0][
            "text"
        ]
        for seed in range(8)
    }
    assert len(free) > 1
    found = _generate(
        midstream, model_folder, "--regex", "[a-j]", "--top-k", 1, "--truncation", "target"
    )
    assert found["particles"][0]["status"] == "dead"
    assert found["particles"][0]["log_weight"] == "-Infinity"
    assert found["particles"][0]["token_ids"] == []


def test_the_table_tells_texts_shares_evidence_and_why(midstream: Call, model_folder: Path) -> None:
    called = midstream(
        "generate", "-m", model_folder, "-p", "Hello", "--choice", "yes", "--choice", "no", "-n", 2
    )
    assert called.code == 0
    assert called.err == ""
    lines = called.out.splitlines()
    assert lines[0].split() == ["text", "share", "log", "weight", "status"]
    shares = [float(share) for share in re.findall(r"(\d+\.\d)%", called.out)]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(100.0, abs=0.2)
    assert "evidence" in called.out
    assert "sampler mask: the matcher gives the whole mask" in called.out


def test_the_embedded_model_is_the_default(midstream: Call) -> None:
    prompt = "Is SSC a valid SMILES?\n"
    options = ("--choice", "yes", "--choice", "no", "--json")
    found = json.loads(midstream("generate", "-p", prompt, *options).out)
    folder = embedded_model_path()
    assert found == json.loads(midstream("generate", "-p", prompt, *options, "-m", folder).out)


def _result() -> SMCResult:
    vocabulary = Vocabulary([b"a", b"\x1b[2J", b""], eos_ids=[2])
    particles = []
    for index, (weight, status, reason) in enumerate(
        [
            (-math.inf, "dead", "nothing is allowed here"),
            (-1.5, "finished", ""),
            (0.0, "length", ""),
        ]
    ):
        particle = Particle(vocabulary, Prefix((0, 1), b"a\x1b[2J", None, 0), index)
        particle.log_weight, particle.reason = weight, reason
        particle.status = status  # type: ignore[assignment]
        particles.append(particle)
    return SMCResult(tuple(particles), (), (), proper=False)


def test_infinite_weights_are_valid_json() -> None:
    text = as_json(_result(), sampler="awrs", seed=3)
    value = json.loads(text, parse_constant=pytest.fail)
    assert [each["log_weight"] for each in value["particles"]] == ["-Infinity", -1.5, 0.0]
    assert value["log_evidence"] == pytest.approx(-1.5 - math.log(3))
    assert [float(each["log_weight"]) for each in value["particles"]] == [-math.inf, -1.5, 0.0]
    assert number(math.nan) == "NaN"
    assert number(math.inf) == "Infinity"


def test_the_table_shows_what_died_and_no_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from midstream.adapters.cli.output import show

    show(page(_result(), sampler="awrs", reason="as asked", seed=3))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"a\x1b[2J" in out
    assert "dead: nothing is allowed here" in out
    assert out.index("finished") < out.index("dead")
    assert "not proper" in out
    assert printable("tab\tline\nbell\a") == "tab\\tline\nbell\\x07"
