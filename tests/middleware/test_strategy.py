"""A strategy is data that builds what a host needs, or an error that names the field."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from midstream.middleware.constraints import AllOf, Choice, Grammar, JsonSchema, Predicate, Regex
from midstream.middleware.errors import ConstraintError, StrategyError
from midstream.middleware.law import Law
from midstream.middleware.sampling import AWRS, Auto, Mask
from midstream.middleware.smc import run
from midstream.middleware.strategy import Strategy

FULL: dict[str, Any] = {
    "constraint": {"all_of": [{"regex": "a+"}, {"choice": ["a", "aa"]}]},
    "sampler": {"awrs": {"accepts": 6, "rejects": 100, "estimator": "recursive"}},
    "smc": {
        "particles": 12,
        "ess_threshold": 0.25,
        "resampling": "residual",
        "resample_every": 3,
        "finished": "together",
    },
    "law": {
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.01,
        "truncation": "target",
    },
    "seed": 2**64 - 1,
    "limits": {"max_new_tokens": 40},
    "healing": {"target": "all"},
}


def test_an_empty_strategy_is_one_draw_of_the_models_own_law() -> None:
    strategy = Strategy()
    assert strategy.build_law() == Law()
    assert strategy.build_sampler() == Auto()
    assert strategy.smc.particles == 1
    assert strategy.seed == 0
    constraint = strategy.build_constraint()
    assert isinstance(constraint, Predicate)
    assert constraint.prefix(b"\xff any bytes") and constraint.complete(b"")


def test_every_field_reaches_what_it_is_for() -> None:
    strategy = Strategy(**FULL)
    assert strategy.build_constraint() == AllOf([Regex("a+"), Choice(["a", "aa"])])
    assert strategy.build_sampler() == AWRS(6, 100, "recursive")
    assert strategy.build_law() == Law(0.7, 50, 0.9, 0.01, "target")
    assert strategy.run_options() == {
        "particles": 12,
        "max_new_tokens": 40,
        "seed": 2**64 - 1,
        "sampler": AWRS(6, 100, "recursive"),
        "law": Law(0.7, 50, 0.9, 0.01, "target"),
        "ess_threshold": 0.25,
        "resampling": "residual",
        "resample_every": 3,
        "finished": "together",
    }


def test_run_options_are_arguments_of_run_with_its_own_defaults() -> None:
    parameters = inspect.signature(run).parameters
    options = Strategy().run_options()
    assert options.keys() <= parameters.keys()
    for name in ("ess_threshold", "resampling", "resample_every", "finished", "law"):
        assert options[name] == parameters[name].default  # type: ignore[literal-required]


@pytest.mark.parametrize(
    ("data", "built"),
    [
        ({"regex": "[0-9]+"}, Regex("[0-9]+")),
        ({"json_schema": {"type": "null"}}, JsonSchema({"type": "null"})),
        (
            {"json_schema": {"type": "null"}, "whitespace": "flexible"},
            JsonSchema({"type": "null"}, whitespace="flexible"),
        ),
        ({"grammar": 'start: "a"'}, Grammar('start: "a"')),
        ({"choice": ["yes", "no"]}, Choice(["yes", "no"])),
        ({"all_of": [{"all_of": [{"regex": "a"}]}]}, AllOf([AllOf([Regex("a")])])),
    ],
)
def test_each_kind_of_constraint(data: dict[str, Any], built: object) -> None:
    assert Strategy(constraint=data).build_constraint() == built
    assert Strategy.load(json.dumps({"constraint": data})).build_constraint() == built


def test_samplers_by_name() -> None:
    assert Strategy(sampler="auto").build_sampler() == Auto()
    assert Strategy(sampler="mask").build_sampler() == Mask()
    assert Strategy(sampler={"awrs": {}}).build_sampler() == AWRS()


def test_what_is_written_is_read_again_from_text_and_file(tmp_path: Path) -> None:
    strategy = Strategy(**FULL)
    text = strategy.model_dump_json(exclude_unset=True)
    assert json.loads(text) == FULL
    assert Strategy.load(text) == strategy
    assert Strategy.load(" \n" + text) == strategy
    path = tmp_path / "strategy.json"
    path.write_text(text, encoding="utf-8")
    assert Strategy.load(path) == strategy
    assert Strategy.load(str(path)) == strategy


def test_a_strategy_does_not_change() -> None:
    strategy = Strategy()
    with pytest.raises(ValueError, match="frozen"):
        strategy.seed = 3
    with pytest.raises(ValueError, match="frozen"):
        strategy.law.temperature = 3.0


@pytest.mark.parametrize(
    ("text", "field", "accepted"),
    [
        ('{"seed": -1}', "seed", "greater than or equal to 0"),
        ('{"seed": 18446744073709551616}', "seed", "less than 18446744073709551616"),
        ('{"seed": 1.5}', "seed", "a valid integer"),
        ('{"seed": true}', "seed", "a valid integer"),
        ('{"sed": 1}', "sed", "did you mean seed?"),
        ('{"smc": {"particles": 0}}', "smc.particles", "greater than or equal to 1"),
        ('{"smc": {"particles": "8"}}', "smc.particles", "a valid integer"),
        ('{"smc": {"particels": 8}}', "smc.particels", "did you mean particles?"),
        ('{"smc": {"resampling": "best"}}', "smc.resampling", "'systematic'"),
        ('{"smc": {"ess_threshold": 1.5}}', "smc.ess_threshold", "less than or equal to 1"),
        ('{"smc": 8}', "smc", "an object"),
        ('{"law": {"temperature": -1}}', "law.temperature", "greater than or equal to 0"),
        ('{"law": {"temperature": NaN}}', "law.temperature", "a finite number"),
        ('{"law": {"temperature": Infinity}}', "law.temperature", "a finite number"),
        ('{"law": {"top_p": 0.9}}', "law.truncation", "'after_mask'"),
        ('{"limits": {"max_new_tokens": 0}}', "limits.max_new_tokens", "equal to 1"),
        ('{"sampler": "greedy"}', "sampler", '"mask"'),
        ('{"sampler": {"mask": {}}}', "sampler", '"mask"'),
        ('{"sampler": {"awrs": {"accepts": 1}}}', "sampler.awrs.accepts", "equal to 2"),
        ('{"sampler": {"awrs": {"rejects": 1}}}', "sampler.awrs.rejects", "at least 2"),
        ('{"sampler": {"awrs": {"acepts": 5}}}', "sampler.awrs.acepts", "did you mean accepts?"),
        ('{"sampler": {"awrs": {}, "k": 5}}', "sampler.k", "one of awrs"),
        ('{"constraint": "a+"}', "constraint", '"regex"'),
        ('{"constraint": {}}', "constraint", '"regex"'),
        ('{"constraint": {"regex": "a", "choice": ["a"]}}', "constraint", "exactly one"),
        ('{"constraint": {"predicate": "f"}}', "constraint", "Predicate is code"),
        ('{"constraint": {"regex": 3}}', "constraint.regex", "a valid string"),
        ('{"constraint": {"regex": "a", "flags": "i"}}', "constraint.flags", "one of regex"),
        ('{"constraint": {"choice": "ab"}}', "constraint.choice", "a list"),
        ('{"constraint": {"choice": []}}', "constraint.choice", "not empty"),
        ('{"constraint": {"json_schema": "{}"}}', "constraint.json_schema", "an object"),
        (
            '{"constraint": {"json_schema": {}, "whitespace": "any"}}',
            "constraint.whitespace",
            "'flexible'",
        ),
        (
            '{"constraint": {"all_of": [{"regex": "a"}, {"regex": 1}]}}',
            "constraint.all_of.1.regex",
            "a valid string",
        ),
        ("{seed: 1}", "strategy", "valid JSON"),
    ],
)
def test_errors_name_the_field_and_what_is_accepted(text: str, field: str, accepted: str) -> None:
    with pytest.raises(StrategyError) as caught:
        Strategy.load(text)
    assert caught.value.argument == field
    assert accepted in caught.value.accepted
    assert str(caught.value).startswith(f"{field}: got ")


def test_errors_are_the_same_in_python() -> None:
    with pytest.raises(StrategyError, match=r"^smc\.particles: got 0; accepted: greater than"):
        Strategy(smc={"particles": 0})
    with pytest.raises(StrategyError, match=r"^law\.truncation: got None with"):
        Strategy(law={"min_p": 0.1})


def test_an_error_counts_what_else_is_wrong() -> None:
    with pytest.raises(StrategyError, match=r"^seed: .* \(and 1 more\)$"):
        Strategy(seed=-1, limits={"max_new_tokens": 0})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_bytes(b"\xff\xfe{}")
    for path, reason in ((tmp_path / "none.json", "No such file"), (tmp_path, "directory")):
        with pytest.raises(StrategyError, match=f"^strategy: got .*{reason}"):
            Strategy.load(path)
    with pytest.raises(StrategyError, match="no UTF-8 text"):
        Strategy.load(bad)


def test_what_the_constraint_says_is_read_when_it_is_built() -> None:
    strategy = Strategy(constraint={"regex": "("})
    with pytest.raises(ConstraintError, match=r"^pattern: got"):
        strategy.build_constraint()


def test_the_json_schema_describes_every_field() -> None:
    schema = Strategy.model_json_schema()
    assert schema["additionalProperties"] is False
    assert list(schema["properties"]) == list(FULL)
    assert "required" not in schema
    law = schema["$defs"]["LawData"]
    assert law["properties"]["temperature"] == {
        "default": 1.0,
        "minimum": 0,
        "title": "Temperature",
        "type": "number",
    }
    kinds = schema["properties"]["constraint"]["anyOf"][0]["oneOf"]
    names = [kind["$ref"].rsplit("/", 1)[1] for kind in kinds]
    assert names == ["RegexData", "JsonSchemaData", "GrammarData", "ChoiceData", "AllOfData"]
