"""The committed Python of midstream.proto.v1 is what the generator makes of the .proto files."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from midstream.proto.generate import FOLDER, generate

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = "grpcio-tools==1.71.*"


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with grpcio-tools: of `make proto`, or one made here."""
    python = REPOSITORY / ".venv-proto" / "bin" / "python"
    if not python.exists():
        folder = tmp_path_factory.mktemp("tools")
        venv.create(folder, with_pip=True)
        python = folder / "bin" / "python"
        install = [str(python), "-m", "pip", "install", "--quiet", TOOLS]
        subprocess.run(install, check=True)
    return str(python)


def _differences(made: Path, committed: Path) -> list[str]:
    names = {p.relative_to(made) for p in made.rglob("*") if p.is_file()}
    there = {p.relative_to(committed) for p in (committed / "v1").rglob("*.py*") if p.is_file()}
    there = {name for name in there if "__pycache__" not in name.parts and name.name != "py.typed"}
    return sorted(
        str(name)
        for name in names | there
        if not (made / name).exists()
        or not (committed / name).exists()
        or (made / name).read_bytes() != (committed / name).read_bytes()
    )


@pytest.mark.slow
def test_generation_gives_the_committed_files_byte_for_byte(tools: str, tmp_path: Path) -> None:
    generate(tools, tmp_path)
    assert _differences(tmp_path, FOLDER) == []


@pytest.mark.slow
def test_another_proto_gives_other_files(
    tools: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "sources" / "midstream" / "v1"
    sources.mkdir(parents=True)
    for path in (FOLDER / "midstream" / "v1").glob("*.proto"):
        (sources / path.name).write_bytes(path.read_bytes())
    models = sources / "models.proto"
    models.write_text(models.read_text().replace("bool is_default = 7;", "bool first = 7;"))
    monkeypatch.setattr("midstream.proto.generate.FOLDER", tmp_path / "sources")
    made = tmp_path / "made"
    generate(tools, made)
    assert _differences(made, FOLDER) == [
        "descriptor_set.binpb",
        "v1/models_pb2.py",
        "v1/models_pb2.pyi",
    ]


def test_generated_code_imports_its_own_siblings() -> None:
    """Another package `midstream` may be on the path: the protos' own name."""
    for path in (FOLDER / "v1").glob("*_pb2*.py*"):
        assert "from midstream.v1" not in path.read_text(), path.name
    code = (
        "import sys, midstream.proto.v1.decoding_pb2_grpc, midstream.proto.v1.models_pb2_grpc, "
        "midstream.proto.v1.logits_processing_pb2_grpc; assert 'midstream.v1' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd="/")
