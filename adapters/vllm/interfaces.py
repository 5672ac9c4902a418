"""vLLM's two interfaces of a logits processor, as far as the installed version has them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from midstream.middleware.errors import InputError

if TYPE_CHECKING:
    V1: Any = object
    V2: Any = object
else:

    class _V1:
        """Stands for an interface that the installed version does not have."""

    class _V2:
        """Another, since a class cannot inherit the same one twice."""

    def _interface(module: str, otherwise: type) -> type:
        try:
            return import_module(module).LogitsProcessor
        except ImportError:
            return otherwise

    V1 = _interface("vllm.v1.sample.logits_processor", _V1)
    # There is none before 0.31.
    V2 = _interface("vllm.v1.worker.gpu.sample.logits_processor.interface", _V2)


def validation_error(error: InputError) -> Exception:
    """The error that vLLM answers with a 400, naming the field."""
    from vllm.exceptions import VLLMValidationError

    refusal: Exception = VLLMValidationError(str(error), parameter=error.argument)
    return refusal
