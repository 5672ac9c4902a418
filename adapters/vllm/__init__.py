"""Strategies inside vLLM: a logits processor for both of its interfaces, weights, and hosts.

`--logits-processors midstream.adapters.vllm:ConstrainedSampling` loads it. vLLM is imported by what
needs it, when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midstream.adapters.vllm.host import VllmHost
    from midstream.adapters.vllm.processor import ConstrainedSampling
    from midstream.adapters.vllm.server_host import VllmServerHost
    from midstream.adapters.vllm.worker_extension import WeightsExtension

__all__ = [
    "ConstrainedSampling",
    "VllmHost",
    "VllmServerHost",
    "WeightsExtension",
]

_PLACES = {
    "ConstrainedSampling": "processor",
    "VllmHost": "host",
    "VllmServerHost": "server_host",
    "WeightsExtension": "worker_extension",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
