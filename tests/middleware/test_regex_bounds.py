"""Hostile patterns are served lazily or refused, in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

GIB = 1 << 30

RUN = """
import json, resource, sys, time
import numpy as np
from midstream.kernels.bitmask import unpack_mask
from midstream.middleware.constraints.lazy import compile_lazy_regex
from midstream.middleware.constraints.regex import Regex
from midstream.middleware.errors import ConstraintError
from midstream.middleware.vocabulary import Vocabulary

words = [f"{a}{b}".encode() for a in "abcdefgh bxy_,.;:=" for b in "aeioubcx étuvwyz12"]
tokens = [*(bytes([b]) for b in range(256)), *words, *(w + v for w in words for v in words[:12])]
tokens = list(dict.fromkeys(tokens))[:4095]
vocabulary = Vocabulary([*tokens, b""], eos_ids=[len(tokens)])
Regex("a").compile(vocabulary)
compile_lazy_regex("a", vocabulary)  # the engines and their tables of the vocabulary come first

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

pattern, text = json.load(sys.stdin)
before, begin = peak(), time.process_time()
found = {"error": None, "wrong": []}
try:
    matcher = Regex(pattern).compile(vocabulary)
except ConstraintError as error:
    found["error"] = str(error)
found["compile_s"] = time.process_time() - begin
if found["error"] is None:
    found["kind"] = type(matcher).__name__
    state = matcher.start()
    bits = np.zeros(vocabulary.mask_words, np.uint32)
    for byte in text.encode():
        matcher.mask(state, bits)
        allowed = unpack_mask(bits, len(vocabulary))
        if (allowed != matcher.allows(state, range(len(vocabulary)))).any():
            found["wrong"].append("mask")
        state = matcher.advance(state, byte)
        if not allowed[byte] or state is None:
            found["wrong"].append(byte)
            break
    else:
        matcher.mask(state, bits)
        found["accepts"] = matcher.accepts(state)
        found["after"] = [b for b in range(256) if bits[b >> 5] >> (b & 31) & 1]
found["grown"] = peak() - before
found["child"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps(found))
"""

LETTERS = [*range(ord("a"), ord("z") + 1)]


@pytest.mark.parametrize(
    ("pattern", "text", "accepts", "after"),
    [
        (r"(a{1,5000}){1,5000}", "aaaa", True, [ord("a")]),
        (r"(\w{1,200}\s){1,50}", "abc x", False, None),
        (r"(.|a){0,2000}b", "a-b", True, None),
        (r"[a-z]{0,3000}x", "abx", True, LETTERS),
        (r".*a.{20}", "xxa" + "y" * 20, True, None),
        (r"(?:(?:a|b)*c.{40}){3}", "abc", False, None),
        (r"(a?){0,5000}a{5000}", "aa", False, [ord("a")]),
        (r"(.*)*(.*)*(.*)*x{5000}", "zx", False, None),
        (r"^(\w{1,200}\s){1,50}$", "ab c ", True, None),
    ],
)
def test_a_hostile_pattern_is_served_within_the_bounds(
    pattern: str, text: str, accepts: bool, after: list[int] | None
) -> None:
    found = _run(pattern, text)
    assert found["error"] is None
    assert found["wrong"] == []
    assert found["accepts"] == accepts
    if after is not None:
        assert found["after"] == after


@pytest.mark.parametrize(
    "pattern",
    [
        "((((((a{1,99}){1,99}){1,99}){1,99}){1,99}){1,99}){1,99}",
        "|".join(rf"[\w&&[^{chr(c)}]]{{9}}" for c in range(0x4E00, 0x4E00 + 1000)),
        "(" * 60 + "a" + "{0,9})" * 60,
        "(){0,999999999}",
        "a" * 150_000,
        "|".join(f"{n:x}word" for n in range(16_000)),
        "(a|b)?" * 3000,
        "(?:.{0,30}[a-c]){0,40}",
    ],
)
def test_a_hostile_pattern_is_served_or_refused_within_the_bounds(pattern: str) -> None:
    _run(pattern, "")


def _run(pattern: str, text: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN],
        input=json.dumps([pattern, text]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["compile_s"] < 10
    assert found["grown"] < GIB
    assert found["child"] < GIB
    return found
