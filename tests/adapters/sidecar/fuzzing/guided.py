"""atheris, as a program: `python guided.py KIND` and the options of libFuzzer.

It ends in the middle of what it does, and leaves behind the socket, in the folder that it is
started in, and the file of shared memory that has its process id.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

# What the modules beside this one are imported by is what atheris can follow.
with atheris.instrument_imports(include=["midstream.adapters.sidecar", "midstream.middleware"]):
    from fuzzing.serving import fuzzer, running


def main(kind: str, options: Sequence[str]) -> None:
    """Send calls of a kind until libFuzzer has enough."""
    with running(Path.cwd()) as target:
        atheris.Setup(["fuzz", *options], fuzzer(target, kind).hypothesis.fuzz_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
