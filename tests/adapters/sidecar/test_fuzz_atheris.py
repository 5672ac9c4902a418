"""What covers new code of the server: atheris changes it on, and the server takes no harm.

`FUZZ_SECONDS` in the environment says how long: half of it, 20 s by default.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("FUZZ_SECONDS", "40")) / 2
PROGRAM = Path(__file__).parent / "fuzzing" / "guided.py"


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS + 120)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("kind", ["generate", "process"])
def test_what_covers_new_code_of_the_server_does_no_harm(kind: str, tmp_path: Path) -> None:
    options = [f"-max_total_time={int(SECONDS / 2)}", "-seed=1", "-max_len=512", "-len_control=0"]
    with subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM), kind, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as program:
        try:
            _, told = program.communicate(timeout=2 * SECONDS + 100)
        finally:
            program.kill()
            Path("/dev/shm", f"midstream-fuzz-{program.pid}").unlink(missing_ok=True)
    assert program.returncode == 0, told[-4000:]
    assert int(re.findall(r"^#(\d+)\s+DONE", told, re.M)[-1]) > 100, told[-2000:]
