"""The wheel: it holds every folder and the embedded model, and it runs where nothing else is."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(REPOSITORY)], check=True)
    (built,) = folder.glob("midstream-*.whl")
    return built


def test_the_wheel_holds_every_folder_and_the_model(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for floor in ("proto", "kernels", "middleware", "logits_processors", "adapters"):
        assert f"midstream/{floor}/py.typed" in names
    assert "midstream/adapters/embedded/model/model.safetensors" in names
    assert "midstream/adapters/embedded/model/tokenizer.json" in names
    assert "midstream/proto/midstream/v1/decoding.proto" in names
    assert "midstream/proto/v1/decoding_pb2.py" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert "midstream/__init__.py" not in names


def test_an_installed_wheel_generates(wheel: Path, tmp_path: Path) -> None:
    """Installed into a folder of its own, without the editable install of this repository."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(wheel)], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); "
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
        "import midstream.adapters.cli as cli; "
        f"assert cli.__file__.startswith({str(site)!r}), cli.__file__; "
        "sys.argv = ['midstream', 'generate', '--prompt', '12 + 30 = ', '--regex', '[0-9]{2}', "
        "'--particles', '2', '--json']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert '"log_evidence"' in done.stdout
