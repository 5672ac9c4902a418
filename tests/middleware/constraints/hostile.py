"""Compile and step hostile constraints; one line of JSON for each. Run by `test_hostile`."""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np

from midstream.middleware.constraints import Grammar, JsonSchema
from midstream.middleware.errors import ConstraintError
from midstream.middleware.vocabulary import Vocabulary


def chain(count: int, link: Any, last: Any) -> Any:
    schemas = {f"a{i}": link({"$ref": f"#/$defs/a{i + 1}"}) for i in range(count)}
    return {"$ref": "#/$defs/a0", "$defs": {**schemas, f"a{count}": last}}


def both(inner: Any) -> Any:
    return {"allOf": [inner, inner]}


def two(inner: Any) -> Any:
    return {"type": "array", "prefixItems": [inner, inner], "minItems": 2}


def alternatives(count: int) -> str:
    lines = "".join(f'r{i}: "k{i}" /[a-z]+/\n' for i in range(count))
    return "start: " + " | ".join(f"r{i}" for i in range(count)) + "\n" + lines


def patterns(letters: str) -> Any:
    return {"allOf": [{"type": "string", "pattern": f"^.*{letter}.*$"} for letter in letters]}


def multiples(*numbers: int) -> Any:
    return {"allOf": [{"type": "integer", "multipleOf": number} for number in numbers]}


NULL = {"type": "null"}
MANY = 10**9


def member(inner: Any) -> Any:
    return {"type": "object", "properties": {"x": inner}, "required": ["x"]}


def choices(count: int) -> Any:
    def one(name: str) -> Any:
        return {"properties": {name: {"type": "null"}}, "required": [name]}

    pairs = [{"anyOf": [one(f"a{i}"), one(f"b{i}")]} for i in range(count)]
    return {"type": "object", "allOf": pairs}


def rules(count: int, line: str, last: str) -> str:
    lines = "".join(line.format(i, i + 1) for i in range(count))
    return "start: a0\n" + lines + last.format(count)


CASES: dict[str, Any] = {
    "nesting": lambda: JsonSchema('{"type":"array","items":' * 100_000 + "{}" + "}" * 100_000),
    "enum": lambda: JsonSchema({"enum": [f"value {i}" for i in range(1_000_000)]}),
    "maxLength": lambda: JsonSchema({"type": "string", "maxLength": 10**9}),
    "minLength": lambda: JsonSchema({"type": "string", "minLength": 10**9}),
    "maxItems": lambda: JsonSchema({"type": "array", "items": NULL, "maxItems": MANY}),
    "minItems": lambda: JsonSchema({"type": "array", "items": NULL, "minItems": MANY}),
    "minItems in a grammar": lambda: Grammar(
        'start: %json {"type": "array", "min\\u0049tems": 1000000000}'
    ),
    "anyOf within allOf": lambda: JsonSchema(choices(24)),
    "allOf of itself twice": lambda: JsonSchema(chain(40, both, {"type": "object"})),
    "arrays of two": lambda: JsonSchema(chain(60, two, NULL)),
    "a chain of members": lambda: JsonSchema(chain(5_000, member, NULL)),
    "multipleOf": lambda: JsonSchema({"type": "integer", "multipleOf": 999_983}),
    "multiples": lambda: JsonSchema(multiples(997, 991, 983, 977)),
    "properties": lambda: JsonSchema(
        {"type": "object", "properties": {f"p{i}": {} for i in range(50_000)}}
    ),
    "pattern": lambda: JsonSchema({"type": "string", "pattern": r"^(a{1,5000}){1,5000}$"}),
    "words": lambda: JsonSchema({"type": "string", "pattern": r"^(\w{1,200}\s){1,50}$"}),
    "a window": lambda: JsonSchema({"type": "string", "pattern": "^(a|b)*a(a|b){30}$"}),
    "patterns at once": lambda: JsonSchema(patterns("abcdefghijklmnopqrstuvwxyz")),
    "parentheses": lambda: Grammar("start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "a chain of rules": lambda: Grammar(rules(50_000, "a{}: a{}\n", 'a{}: "x"\n')),
    "rules twice": lambda: Grammar(rules(60, "a{0}: a{1} a{1}\n", 'a{}: "x" | "y"\n')),
    "terminals twice": lambda: Grammar(
        rules(40, "A{0}: A{1} A{1}\n", 'A{}: "x"\n').replace("a0", "A0")
    ),
    "repetition": lambda: Grammar('start: a{0,1000000000}\na: "x" | "y"\n'),
    "ambiguity": lambda: Grammar('start: s\ns: s s s | s s | "a" | "b" | ""\n'),
    "many rules": lambda: Grammar(alternatives(20_000)),
    "complement": lambda: Grammar(
        "start: A\nA: ~(/(?s:.*)(a|b){20}(?s:.*)/) & /(?s:.*)a.{30}b(?s:.*)/\n"
    ),
    "loop": lambda: Grammar("start: start\n"),
}


def spent() -> float:
    """Processor time, of the children too: other load on the machine is not counted."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def step(matcher: Any) -> str:
    draw, state = random.Random(0), matcher.start()
    out = np.zeros(matcher.vocabulary.mask_words, np.uint32)
    began = spent()
    for _ in range(60):
        matcher.mask(state, out)
        allowed = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))
        if not allowed.size:
            return f"ended: {matcher.reason(state)}"
        state = matcher.advance(state, int(draw.choice(allowed)))
        assert state is not None
        if spent() - began > 5:
            return "slow"
    return "going on"


def peak_mib() -> float:
    """Of this program. `ru_maxrss` also counts what its parent had when it started it."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def main() -> None:
    vocabulary = Vocabulary(
        [bytes([byte]) for byte in range(256)] + [b"ab", b'":', b"aa", b"the ", b""], eos_ids=[260]
    )
    JsonSchema({"type": "null"}).compile(vocabulary)
    for name in CASES:
        began = spent()
        try:
            matcher = CASES[name]().compile(vocabulary)
        except ConstraintError as error:
            outcome, taken = str(error)[-200:], spent() - began
            refused = True
        else:
            taken = spent() - began
            outcome, refused = step(matcher), False
        childs = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(json.dumps([name, taken, refused, outcome, peak_mib(), childs]), flush=True)


if __name__ == "__main__":
    main()
