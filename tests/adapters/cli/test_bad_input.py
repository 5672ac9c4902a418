"""Bad input is one line on stderr and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

Call = Callable[..., Any]

PROMPT = ("-p", "Hello")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--regex", "a("), ["pattern: got ", "'a('", "unclosed group"]),
        (("--json-schema", '{"type": '), ["--json-schema: got", "valid JSON (Expecting value"]),
        (("--json-schema", "[1]"), ["--json-schema: got [1]", "an object"]),
        (("--json-schema", "@nowhere.json"), ["--json-schema: got @nowhere.json (No such file"]),
        (("--regex", "a", "--choice", "a"), ["got --regex and --choice", "all_of"]),
        (("--particles", 0), ["--particles: got 0", "equal to 1"]),
        (("--particles", "many"), ["'--particles'", "midstream generate --help"]),
        (("--temperature", -1), ["--temperature: got -1.0", "equal to 0"]),
        (("--temperature", "nan"), ["--temperature: got nan", "finite"]),
        (("--temperature", 0), ["law.temperature: got 0", "particles are draws, not a search"]),
        (("--top-p", 0.9), ["--truncation: got None", "'target'", "'after_mask'"]),
        (("--top-p", 0), ["--top-p: got 0.0", "greater than 0"]),
        (("--top-k", -3), ["--top-k: got -3"]),
        (("--min-p", 1), ["--min-p: got 1.0", "less than 1"]),
        (("--truncation", "soft"), ["--truncation: got soft", "'target' or 'after_mask'"]),
        (("--seed", -1), ["--seed: got -1"]),
        (("--max-new-tokens", 0), ["--max-new-tokens: got 0"]),
        (("--sampler", "greedy"), ["--sampler: got greedy", "auto, mask, awrs"]),
        (
            ("--sampler", "awrs", "--top-k", 5, "--truncation", "after_mask"),
            ["law.truncation: got", "never sees the whole mask"],
        ),
        (("--model", "/no/such/folder"), ["model: got /no/such/folder"]),
        (("--strategy", "/no/such/file"), ["strategy: got /no/such/file"]),
        (("--no-such-option",), ["No such option: --no-such-option", "midstream generate --help"]),
    ],
)
def test_found_before_the_model_is_loaded(
    midstream: Call, monkeypatch: pytest.MonkeyPatch, options: tuple[Any, ...], words: list[str]
) -> None:
    import midstream.adapters.cli.model as model

    if "--model" not in options:
        monkeypatch.setattr(model, "load_model", lambda source: pytest.fail("too late"))
    line = midstream("generate", *PROMPT, *options).refused()
    for word in words:
        assert word in line


def test_what_only_the_vocabulary_can_tell(midstream: Call, model_folder: Path) -> None:
    def refused(*options: object) -> str:
        line: str = midstream("generate", "-m", model_folder, *options).refused()
        return line

    assert refused("-p", "Hello", "--regex", "a{90}", "--max-new-tokens", 5).startswith(
        "max_new_tokens: got 5; accepted: at least "
    )
    schema = json.dumps({"type": "string", "minLength": 400})
    assert "max_new_tokens: got 5" in refused(
        "-p", "Hello", "--json-schema", schema, "--max-new-tokens", 5
    )
    schema = '{"type": "integer", "minimum": 5, "maximum": 3}'
    line = refused("-p", "Hello", "--json-schema", schema)
    assert line.startswith("schema: got ")
    assert "minimum (5) is greater than maximum (3)" in line
    line = refused("-p", "Hello", "--grammar", "start: (")
    assert line.startswith("lark: got start: (")
    assert "Expected token ')'" in line
    line = refused("-p", "Hello", "--sampler", "mask")
    assert line.startswith("sampler: got mask for a matcher without a mask")


def test_prompts_that_the_model_cannot_take(midstream: Call, model_folder: Path) -> None:
    options = ("-m", model_folder, "--regex", "a", "--max-new-tokens", 5)
    line = midstream("generate", "-p", "word " * 600, *options).refused()
    assert line.startswith("prompt: got ")
    assert "at most 512" in line
    line = midstream("generate", "-p", "word " * 450, *options[:-1], 100).refused()
    assert line.startswith("max_new_tokens: got 100 after a prompt of ")
    line = midstream("generate", "-p", "", *options).refused()
    assert line == "--prompt: got no token; accepted: a text of at least one token"
    assert "Missing option '--prompt'" in midstream("generate").refused()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"smc": {"particels": 3}}', ["smc.particels: got", "did you mean particles?"]),
        ('{"speculation": {}}', ["speculation: got", "one of constraint, sampler"]),
        ('{"constraint": {"predicate": "lambda"}}', ["constraint: got", "Predicate is code"]),
        ("seed: 3", ["strategy: got seed: 3", "valid JSON"]),
    ],
)
def test_strategy_files(midstream: Call, tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "strategy.json"
    file.write_text(text, encoding="utf-8")
    line = midstream("generate", *PROMPT, "--strategy", file).refused()
    for word in words:
        assert word in line


def test_folders_that_hold_no_model(midstream: Call, model_folder: Path, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        line: str = midstream("generate", *PROMPT, "--regex", "a", "-m", folder).refused()
        return line

    assert "no config.json in it" in refused(tmp_path)
    no_weights = tmp_path / "no_weights"
    shutil.copytree(model_folder, no_weights)
    (no_weights / "model.safetensors").unlink()
    assert "model.safetensors" in refused(no_weights)
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    (broken / "model.safetensors").write_bytes(b"\0" * 64)
    assert refused(broken).startswith(f"model: got {broken} (")


def test_a_tokenizer_of_another_model(midstream: Call, model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet])}
    other = Tokenizer(models.BPE(vocab=ids, merges=[]))
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = decoders.ByteLevel()
    other.add_special_tokens(["<|endoftext|>"])
    other.save(str(folder / "tokenizer.json"))
    line = midstream("generate", *PROMPT, "--regex", "a", "-m", folder).refused()
    assert line.startswith("tokenizer: got 258 tokens, for a model with 4096 logits")


def test_the_demonstration_checks_its_picture_first(
    midstream: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import midstream.adapters.cli.demo_command as command

    monkeypatch.setattr(command, "run_demo", lambda *a, **k: pytest.fail("too late"))
    assert "ends in .png" in midstream("demo", "--plot", tmp_path / "a.pdf").refused()
    assert "folder that exists" in midstream("demo", "--plot", tmp_path / "b" / "a.png").refused()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert "midstream[plot]" in midstream("demo", "--plot", tmp_path / "a.png").refused()


def test_faults_of_our_own_are_one_line_too(
    midstream: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import midstream.adapters.cli.generate_command as command

    def broken(*arguments: object) -> None:
        raise RuntimeError("this is\na bug")

    monkeypatch.setattr(command, "generation", broken)
    called = midstream("generate", *PROMPT)
    assert called.code == 1
    assert called.err == "midstream: error: RuntimeError: this is a bug\n"
