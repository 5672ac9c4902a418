"""Sequential Monte Carlo under a constraint, and exact healing of prompts that end inside a token,
for `model.generate(custom_generate=<this repository>)`."""

from __future__ import annotations

import inspect
from typing import Any

from midstream.adapters.transformers import heal, smc

HEALING = "heal"
"""The argument that asks for healing."""


def generate(model: Any, **arguments: Any) -> Any:
    """What `midstream.adapters.transformers.heal` does where `heal` is given, else what
    `midstream.adapters.transformers.smc` does.

    tokenizer, constraint, particles and the other options of the one or the other are keyword
    arguments of `model.generate()` here; all else is that function's own.
    return_dict_in_generate=True gives the weights besides the sequences, the evidence of particles,
    and the bytes behind healed prompts.
    """
    asked = heal if HEALING in arguments else smc
    names = inspect.signature(asked).parameters.keys() & arguments.keys()
    options = {name: arguments.pop(name) for name in names}
    return model.generate(custom_generate=asked(**options), **arguments)
