"""Make the Python of midstream.proto.v1 from the .proto files.

    python -m midstream.proto.generate --tools .venv-proto/bin/python

Code made by grpcio-tools 1.71 loads with every protobuf from 5.29 on, newer tools ask for a newer
one; so the tools live in an environment of their own.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from midstream.proto.breaking import breaking_changes
from midstream.proto.stubs import service_types

FOLDER = Path(__file__).resolve().parent
SOURCES = "midstream/v1"
BASELINE = "descriptor_set.binpb"
HEAD = '"""The generated messages and services of midstream.v1."""\n'

UNCHECKED = "# mypy: ignore-errors\n"
"""The generator's annotations are partial: `Mapping` without types."""

_IMPORT = re.compile(r"^from midstream\.v1 import", re.MULTILINE)


def generate(tools: str, out: Path) -> None:
    """Write v1/ and the descriptor set into a folder.

    tools: a Python that has grpcio-tools.
    """
    protos = sorted((FOLDER / SOURCES).glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        command = [tools, "-P", "-m", "grpc_tools.protoc", "--proto_path", str(FOLDER)]
        for kind in ("python", "pyi", "grpc_python"):
            command.append(f"--{kind}_out={made}")
        command += ["--include_imports", f"--descriptor_set_out={made / BASELINE}"]
        command += [f"{SOURCES}/{proto.name}" for proto in protos]
        subprocess.run(command, check=True, cwd=FOLDER)
        descriptors = (made / BASELINE).read_bytes()
        target = out / "v1"
        target.mkdir(parents=True, exist_ok=True)
        (out / BASELINE).write_bytes(descriptors)
        (target / "__init__.py").write_text(HEAD, encoding="utf-8")
        for file in FileDescriptorSet.FromString(descriptors).file:
            module = Path(file.name).stem
            names = [f"{module}_pb2.py", f"{module}_pb2.pyi"]
            if file.service:
                names.append(f"{module}_pb2_grpc.py")
                types = service_types(file, module)
                (target / f"{module}_pb2_grpc.pyi").write_text(types, encoding="utf-8")
            for name in names:
                code = (made / SOURCES / name).read_text(encoding="utf-8")
                (target / name).write_text(_in_this_package(code), encoding="utf-8")


def _in_this_package(code: str) -> str:
    """The protos are midstream.v1 in every language; the Python package is not."""
    return UNCHECKED + _IMPORT.sub("from midstream.proto.v1 import", code)


def main() -> int:
    """The exit status: 1 where the protos break what the committed descriptor set promises."""
    parser = argparse.ArgumentParser(description="Make the Python of midstream.proto.v1.")
    parser.add_argument("--tools", required=True, help="a Python that has grpcio-tools 1.71")
    parser.add_argument(
        "--breaking",
        action="store_true",
        help="replace the descriptor set although clients of the old one break",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        generate(options.tools, made)
        old = FOLDER / BASELINE
        new = FileDescriptorSet.FromString((made / BASELINE).read_bytes())
        if old.exists() and not options.breaking:
            changes = breaking_changes(FileDescriptorSet.FromString(old.read_bytes()), new)
            if changes:
                sys.stderr.write("clients would break:\n  " + "\n  ".join(changes) + "\n")
                return 1
        for path in sorted(made.rglob("*")):
            if path.is_file():
                target = FOLDER / path.relative_to(made)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
