"""Every benchmark's tables, one after another, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("awrs_step", "overhead", "json_check", "curves", "bytes", "sidecar_step")
REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    """Arguments go to all of them. The exit status is the worst of theirs."""
    # One thread: both sides are serial, and threads of the linear algebra library only add noise.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    worst = 0
    for name in BENCHMARKS:
        print(f"## {name}\n", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]
        worst = max(worst, subprocess.run(command, cwd=REPOSITORY, env=environment).returncode)
        print(flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
