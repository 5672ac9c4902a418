"""Masked sampling with log weights: what it costs beside the floor and beside other pipelines.

On a GPU: bytes, floor, time and percent of the floor, beside the torch pipeline, one kernel a step
as vLLM has it, and FlashInfer where it is installed. Without one: instructions a logit of the
compiled kernels, and the numpy path beside torch on the CPU. Imports numpy, torch, triton and
midstream.kernels alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
import triton

from benchmarks.compiled import CAPABILITIES, Compiled, compile_for
from benchmarks.kernel_cases import Case, make_case, ours, torch_pipeline
from benchmarks.report import Cell, Table, machine
from benchmarks.timing import Work, ratio, take_turns
from midstream.kernels.triton import block_stats, pick

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SIZES = (128_256, 151_936)
GPU_ROWS = (1, 8, 32, 64, 128, 256)
CPU_ROWS = (1, 2, 4, 8, 16, 32)
TARGETS = {"block_stats bf16, mask, T of row": "26.9", "block_stats fp32, mask, T of row": "26.2"}
"""Instructions a logit with mask and temperature, counted for sm_90 in a study of the design."""

EXAMPLES = """\
examples
  python -m benchmarks.kernels                      everything, in a minute or two
  python -m benchmarks.kernels --rows 1,32          these batch sizes alone
  python -m benchmarks.kernels --dtype bf16 --json found.json

On a machine where nothing can be installed, but numpy, torch and triton are:
  make kernels-path
  PYTHONPATH=build/path python -m benchmarks.kernels

how to read it
  floor     bytes that any method must move over the bandwidth of a copy on the same card
  % floor   floor / time: 100 would be a kernel that only reads its input
  4.2x      how many times slower than ours; on the CPU the median of pairs that took turns, and
            the middle half of them. Where other work runs beside, trust the ratio of CPU time
Each call reads buffers of its own, twice the L2 cache in all, and a CUDA graph makes the calls.
On a GPU the run begins with checks: equal tokens and weights as numpy, rows that are the same bit
for bit in any batch. Where one fails nothing is timed and the exit status is 1.
"""


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=(__doc__ or "").split("\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=_numbers, metavar="B,...", help="batch sizes")
    parser.add_argument("--dtype", choices=[*DTYPES], help="one precision (without: both on a GPU)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found there")
    options = parser.parse_args()
    if torch.cuda.is_available():
        from benchmarks.kernels_gpu import check, measure

        names = [options.dtype] if options.dtype else [*DTYPES]
        checks, passed = check()
        tables = [checks]
        if passed:
            tables += measure(options.rows or GPU_ROWS, {name: DTYPES[name] for name in names})
        gpu = torch.cuda.get_device_name()
    else:
        passed, gpu = True, "none: GPU times are unmeasured"
        tables = [instruction_table(), cpu_table(options.rows or CPU_ROWS, options.dtype or "fp32")]
    place: dict[str, Cell] = {**machine(), "triton": triton.__version__, "gpu": gpu}
    print(", ".join(f"{name} {value}" for name, value in place.items()))
    for table in tables:
        print("\n" + table.text())
    if options.json is not None:
        found = {"machine": place, "tables": [dataclasses.asdict(t) for t in tables]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if passed else 1


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"got {text}; accepted: batch sizes, as in 1,8,32")
    return numbers


def instruction_table() -> Table:
    """Of the two kernels of masked sampling, compiled for three kinds of GPU."""
    columns = ["kernel", *(f"sm_{each}" for each in CAPABILITIES), "design, sm_90"]
    rows = []
    for variant in (*block_stats.VARIANTS, *pick.VARIANTS):
        built = [compile_for(variant, capability) for capability in CAPABILITIES]
        cells = [_told(each, each.per_logit(variant) if variant.tokens else None) for each in built]
        rows.append([variant.name, *cells, TARGETS.get(variant.name, "")])
    title = "Instructions a logit (of `pick`: in all), registers, 128-bit loads, from compiled code"
    return Table(title, columns, rows)


def _told(built: Compiled, per_logit: float | None) -> str:
    count = f"{per_logit:.1f}" if per_logit is not None else str(built.instructions)
    spills = f", {built.spilled} spilled" if built.spilled else ""
    return f"{count}, {built.registers} reg, {built.wide_loads} wide{spills}"


def cpu_table(batches: tuple[int, ...], dtype: str) -> Table:
    """The numpy path beside the torch pipeline with one thread, and with all that torch takes."""
    size, most = SIZES[0], torch.get_num_threads()
    counts = [*dict.fromkeys((1, most))]
    rows: list[list[Cell]] = []
    for batch in batches:
        case = make_case(batch, size, DTYPES[dtype], "cpu")

        def by_torch(threads: int, case: Case = case) -> Work:
            def work(_: int) -> None:
                torch.set_num_threads(threads)
                torch_pipeline(case)

            return work

        def by_numpy(_: int, case: Case = case) -> None:
            ours(case)

        candidates = {"ours": by_numpy, **{str(count): by_torch(count) for count in counts}}
        rounds = max(9, 81 // batch)
        own, *theirs = take_turns(candidates, rounds=rounds).values()
        cells = [cell for us in theirs for cell in (us.median_us, str(ratio(us, own)))]
        alone = {name: candidates[name] for name in ("ours", "1")}
        core = take_turns(alone, rounds=rounds, clock="cpu")
        cells.append(str(ratio(core["1"], core["ours"])))
        rows.append([batch, own.median_us, *cells, "4x" if batch == 1 else "never slower"])
    torch.set_num_threads(most)
    named = [f"torch us, {n} thread{'s' * (n > 1)}" for n in counts]
    pairs = [column for name in named for column in (name, "ratio")]
    columns = ["B", "numpy us", *pairs, "ratio of CPU time, 1 thread", "target"]
    return Table(f"On the CPU, V = {size}, {dtype}", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
