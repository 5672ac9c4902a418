"""What kernels cost in machine code, compiled ahead of time: no GPU is needed.

The kernels have no loops: a warp issues each instruction of the code once at the most, and of a
branch that a whole block and the last one take differently one side. So counts are upper bounds.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from midstream.kernels.triton.launch import Variant

CAPABILITIES = (80, 90, 100)
"""A100, H100 and H200, B200."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """One variant for one kind of GPU.

    instructions: in the code, without what pads its end. spilled: bytes of stack a thread.
    wide_loads: loads of 128 bits.
    """

    instructions: int
    registers: int
    spilled: int
    wide_loads: int

    def per_logit(self, variant: Variant) -> float:
        """Instructions of one lane for each logit of a block."""
        return self.instructions * 32 * variant.num_warps / variant.tokens


def compile_for(variant: Variant, capability: int) -> Compiled:
    """Compile and count. Raises what the compiler raises."""
    built = variant.compile(capability)
    return _count(built.asm["cubin"])


def _count(cubin: bytes) -> Compiled:
    from triton.backends import nvidia

    tools = Path(nvidia.__path__[0]) / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _output(tools / "cuobjdump", "-res-usage", path)
        listing = _output(tools / "nvdisasm", "-c", path)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump told nothing of registers: {usage!r}")
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", listing, re.M)
    while code and code[-1] in ("NOP", "BRA"):  # a jump to itself and padding close the code
        code.pop()
    wide = sum(name.startswith("LDG") and ".128" in name for name in code)
    return Compiled(len(code), int(found[1]), int(found[2]), wide)


def _output(tool: Path, *arguments: object) -> str:
    command = [str(tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
