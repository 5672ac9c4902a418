"""Run mypy --strict on the package as installed from a wheel.

Static checkers do not follow the import hook of an editable install of mapped folders, so a wheel
is built and unpacked first.

"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> int:
    """The exit status of mypy."""
    with tempfile.TemporaryDirectory() as folder:
        build = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            folder,
        ]
        subprocess.run([*build, str(REPOSITORY)], check=True)
        (wheel,) = Path(folder).glob("midstream-*.whl")
        package = Path(folder) / "unpacked"
        zipfile.ZipFile(wheel).extractall(package)
        configuration = str(REPOSITORY / "pyproject.toml")
        cache = str(REPOSITORY / ".mypy_cache")
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            configuration,
            "--cache-dir",
            cache,
        ]
        namespace = ["--namespace-packages", "--explicit-package-bases", "midstream"]
        return subprocess.run([*command, *namespace], cwd=package).returncode


if __name__ == "__main__":
    sys.exit(main())
