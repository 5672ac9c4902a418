"""Kernels compiled ahead of time, without a GPU: registers, spills, wide loads.

`bounds.json` holds the registers that Triton 3.9.0 takes, for each variant and capability, up to a
multiple of 8, as the hardware gives them out. A kernel that takes more has fewer warps beside it,
and must say why; `python tests/kernels/triton/test_compiled.py` then writes the bounds anew.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import midstream.kernels.triton
from midstream.kernels.triton.launch import Variant

CAPABILITIES = (80, 90, 100)
BOUNDS = Path(__file__).with_name("bounds.json")
COMPILED = Path(__file__).resolve().parents[3] / "benchmarks" / "compiled.py"

Count = Callable[[Variant, int], Any]
Counts = dict[tuple[str, int], "Future[Any]"]


def _variants() -> list[Variant]:
    names = [each.name for each in pkgutil.iter_modules(midstream.kernels.triton.__path__)]
    modules = [importlib.import_module(f"midstream.kernels.triton.{name}") for name in names]
    return [variant for module in modules for variant in getattr(module, "VARIANTS", ())]


def _counter() -> Count:
    """Compile a variant for a capability and count as the benchmarks do: instructions, registers,
    spilled, wide_loads.
    """
    spec = importlib.util.spec_from_file_location("compiled_kernels", COMPILED)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return lambda variant, capability: module._count(variant.compile(capability).asm["cubin"])


def _count_all(pool: ThreadPoolExecutor, count: Count, variants: list[Variant]) -> Counts:
    """Side by side: half of a compilation leaves the interpreter free."""
    return {
        (variant.name, capability): pool.submit(count, variant, capability)
        for variant in variants
        for capability in CAPABILITIES
    }


VARIANTS = _variants()


@pytest.fixture(scope="module")
def bounds() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(BOUNDS.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def count() -> Count:
    return _counter()


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest, count: Count) -> Iterator[Counts]:
    """Of the variants that this run asks for."""
    calls = (getattr(item, "callspec", None) for item in request.session.items)
    asked = {call.params["variant"].name for call in calls if call and "variant" in call.params}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield _count_all(pool, count, [each for each in VARIANTS if each.name in asked])


def test_every_variant_has_its_bound(bounds: dict[str, dict[str, int]]) -> None:
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert set(names) == set(bounds)
    assert all(set(each) == {str(c) for c in CAPABILITIES} for each in bounds.values())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_registers_spills_and_loads(
    variant: Variant, counts: Counts, bounds: dict[str, dict[str, int]]
) -> None:
    for capability in CAPABILITIES:
        found = counts[variant.name, capability].result()
        each = f" ({found.per_logit(variant):.1f} a logit)" if variant.tokens else ""
        print(
            f"{variant.name}, sm_{capability}: {found.registers} registers, "
            f"{found.instructions} instructions{each}, {found.wide_loads} wide loads"
        )
        assert found.registers <= bounds[variant.name][str(capability)], capability
        assert found.spilled == 0, capability
        if variant.wide:
            assert found.wide_loads > 0, capability


def _named(start: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.name.startswith(start))


def test_narrow_loads_are_seen(count: Count) -> None:
    """At a stride that is no multiple of 16 nothing wider than one logit can be loaded."""
    aligned = _named("block_stats bf16, mask")
    odd = replace(aligned, signature={**aligned.signature, "logits_stride": "i32"})
    assert count(aligned, 90).wide_loads > 0
    assert count(odd, 90).wide_loads == 0


def test_spills_are_seen(count: Count) -> None:
    """A whole block in the registers of one warp."""
    variant = _named("draw_without_replacement fp32")
    assert count(replace(variant, num_warps=1), 90).spilled > 0


def _record() -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = _count_all(pool, _counter(), VARIANTS)
        bounds = {
            name: {str(c): -(-found[name, c].result().registers // 8) * 8 for c in CAPABILITIES}
            for name in sorted(variant.name for variant in VARIANTS)
        }
    BOUNDS.write_text(json.dumps(bounds, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _record()
