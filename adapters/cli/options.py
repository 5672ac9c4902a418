"""The options of `midstream generate`, and the strategy that they and a file make together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midstream.middleware.errors import ConstraintError, InputError, StrategyError
from midstream.middleware.strategy import AwrsSampler, Strategy

FIELDS: Mapping[str, str] = {
    "--regex": "constraint",
    "--json-schema": "constraint",
    "--grammar": "constraint",
    "--choice": "constraint",
    "--particles": "smc.particles",
    "--sampler": "sampler",
    "--seed": "seed",
    "--temperature": "law.temperature",
    "--top-k": "law.top_k",
    "--top-p": "law.top_p",
    "--min-p": "law.min_p",
    "--truncation": "law.truncation",
    "--max-new-tokens": "limits.max_new_tokens",
}
"""Which field of a strategy an option sets."""

SAMPLERS = ("auto", "mask", "awrs")


def strategy_of(base: Strategy, given: Mapping[str, Any]) -> Strategy:
    """A strategy, each of whose fields an option that was given overrides.

    given: by option; None is not given. A constraint option replaces the whole constraint.
    `--sampler awrs` keeps the accepts, rejects and estimator of a base that has the sampler awrs.
    Raises InputError, naming the option where the value came from one.
    """
    options = {option: value for option, value in given.items() if value is not None}
    constraints = [option for option in options if FIELDS[option] == "constraint"]
    if len(constraints) > 1:
        accepted = "one of them, or a strategy file with all_of"
        raise StrategyError("constraint", " and ".join(constraints), accepted)
    fields = base.model_dump(mode="json", exclude_unset=True)
    for option, value in options.items():
        *parents, last = FIELDS[option].split(".")
        place = fields
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = _data(option, value, base)
    try:
        return Strategy(**fields)
    except InputError as error:
        raise _naming_the_option(error, options) from None


def _data(option: str, value: Any, base: Strategy) -> Any:
    """The value of an option as a strategy has it."""
    if option == "--json-schema":
        return {"json_schema": _json(option, _text_or_file(option, value))}
    if option == "--grammar":
        return {"grammar": _text_or_file(option, value)}
    if option in ("--regex", "--choice"):
        return {option.removeprefix("--"): value}
    if option == "--sampler":
        return _sampler(value, base)
    return value


def _sampler(name: str, base: Strategy) -> Any:
    if name not in SAMPLERS:
        raise StrategyError("--sampler", name, "one of " + ", ".join(SAMPLERS))
    if name != "awrs":
        return name
    kept = isinstance(base.sampler, AwrsSampler)
    return base.model_dump(mode="json")["sampler"] if kept else {"awrs": {}}


def _text_or_file(option: str, value: str) -> str:
    """The value itself, or after an @ the text of a file."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise InputError(option, f"{value} ({reason})", "text, or @ and a file's path") from None


def _json(option: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        accepted = f"valid JSON ({error}), or @ and a file's path"
        raise ConstraintError(option, text, accepted) from None


def _naming_the_option(error: InputError, options: Mapping[str, Any]) -> InputError:
    for option, field in FIELDS.items():
        named = field != "constraint" or option in options
        if named and error.argument.startswith(field):
            return type(error)(option, error.got, error.accepted)
    return error
