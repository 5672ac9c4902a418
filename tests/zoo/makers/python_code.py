"""Python: small functions written to order, and text of the standard library.

The library is that of the running interpreter: another version of Python gives other text.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from random import Random

from makers.item import Item, is_held_out

_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo"}
_MIN_CHARS, _MAX_CHARS = 60, 1600
_ARGUMENTS = "x y n value number item size count total".split()
_VERBS = {
    "plus": ("add", "+"),
    "minus": ("subtract", "-"),
    "times": ("multiply", "*"),
    "modulo": ("modulo", "%"),
}
_SEQUENCE_WISHES = {
    "the length of": "len({})",
    "the sum of": "sum({})",
    "the largest of": "max({})",
    "the smallest of": "min({})",
    "the first of": "{}[0]",
    "the last of": "{}[-1]",
    "a sorted copy of": "sorted({})",
    "a reversed copy of": "{}[::-1]",
    "the set of": "set({})",
}


@dataclass(frozen=True, slots=True)
class Library:
    """Text of the standard library: functions, docstrings, and whole files, of one side."""

    functions: tuple[str, ...]
    docstrings: tuple[str, ...]
    files: tuple[str, ...]


def make_python(rng: Random) -> Item:
    """A comment that asks for a one-line function, and the function."""
    argument = rng.choice(_ARGUMENTS)
    if rng.random() < 0.5:
        word = rng.choice(tuple(_VERBS))
        verb, sign = _VERBS[word]
        number = rng.randint(1, 99)
        name = f"{verb}_{number}"
        wish, body = f"{argument} {word} {number}", f"{argument} {sign} {number}"
    else:
        argument = f"{argument}s" if argument in ("value", "number", "item") else "items"
        words = rng.choice(tuple(_SEQUENCE_WISHES))
        body = _SEQUENCE_WISHES[words].format(argument)
        name, wish = f"f{rng.randint(1, 999)}", f"{words} {argument}"
    prompt = rng.choice(("# Function {n}({a}) returns {w}\n", "# {n}({a}): {w}\n")).format(
        n=name, a=argument, w=wish
    )
    answer = f"def {name}({argument}):\n    return {body}"
    regex = r"def [a-z_0-9]+\([a-z]+\):\n    return [^\n]+"
    return Item("python", prompt, answer, f"python|{answer}", {"regex": regex})


def _read(path: Path) -> tuple[str, ast.Module] | None:
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return text, ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _pieces(text: str, tree: ast.Module) -> tuple[list[str], list[str]]:
    functions: list[str] = []
    docstrings: list[str] = []
    lines = text.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.Module):
            doc = ast.get_docstring(node)
            if doc and _MIN_CHARS <= len(doc) <= _MAX_CHARS:
                docstrings.append(doc)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = lines[node.lineno - 1 : node.end_lineno]
            source = "\n".join(line[node.col_offset :] for line in body)
            if _MIN_CHARS <= len(source) <= _MAX_CHARS:
                functions.append(source)
    return functions, docstrings


def read_library(*, held_out: bool) -> Library:
    """Every module of the standard library on one side of the split, tests and tools left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    functions: list[str] = []
    docstrings: list[str] = []
    files: list[str] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED & set(relative.parts) or is_held_out(f"file|{relative}") != held_out:
            continue
        read = _read(path)
        if read is None:
            continue
        more_functions, more_docstrings = _pieces(*read)
        functions += more_functions
        docstrings += more_docstrings
        files.append(read[0])
    return Library(tuple(dict.fromkeys(functions)), tuple(dict.fromkeys(docstrings)), tuple(files))
