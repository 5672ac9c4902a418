"""Sequential Monte Carlo under a constraint, for `model.generate(custom_generate=<this
repository>)`."""

from __future__ import annotations

import inspect
from typing import Any

from midstream.adapters.transformers import smc

OPTIONS = frozenset(inspect.signature(smc).parameters)


def generate(model: Any, **arguments: Any) -> Any:
    """What `midstream.adapters.transformers.smc` does.

    constraint, tokenizer, particles and its other options are keyword arguments of
    `model.generate()` here; all else is that function's own. return_dict_in_generate=True gives the
    weights and the evidence besides the sequences.
    """
    options = {name: arguments.pop(name) for name in OPTIONS & set(arguments)}
    return model.generate(custom_generate=smc(**options), **arguments)
