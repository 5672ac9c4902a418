"""Admission of a request in the server's process: parsed, bounded and named, never compiled."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from typing import Any

from midstream.adapters.vllm.compiling import Compiler
from midstream.adapters.vllm.request import ARGUMENT, Asked, asked_of, plan_of
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

PATIENCE_SECONDS = 0.02
"""How long the server's event loop waits for a constraint; most take a tenth of it."""

REMEMBERED = 100_000
SECONDS = 3600.0


class Admitted:
    """The ids of the latest requests, each with the nonce of its admission."""

    def __init__(self, remembered: int = REMEMBERED, seconds: float = SECONDS) -> None:
        self._remembered = remembered
        self._seconds = seconds
        self._lock = threading.Lock()
        self._nonces: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def admit(self, key: str, nonce: str | None) -> str:
        """The nonce of a new id, or of one that was admitted with that nonce.

        Raises StrategyError for an id that another request has.
        """
        now = time.monotonic()
        with self._lock:
            while self._nonces:
                oldest = next(iter(self._nonces.values()))
                if len(self._nonces) <= self._remembered and now - oldest[0] < self._seconds:
                    break
                self._nonces.popitem(last=False)
            known = self._nonces.get(key)
            if known is None:
                nonce = secrets.token_hex(16)
                self._nonces[key] = now, nonce
            elif known[1] != nonce:
                accepted = "an id that no other request of the last hour has; or none: one is made"
                raise StrategyError(f"{ARGUMENT}.id", key, accepted)
            return known[1] if known is not None else str(nonce)


_admitted = Admitted()
_over_bytes = Compiler(Vocabulary([*(bytes([i]) for i in range(256)), b""], eos_ids=(256,)))


def admit(params: Any) -> None:
    """Check a request's parameters, and write its id and base seed back into them.

    Raises InputError, naming the field.
    """
    asked = asked_of(params)
    if asked is None:
        return
    plan = plan_of(params)
    assert plan is not None
    _check_constraint(plan.strategy)
    base = asked.base_seed
    if base is None or not asked.admitted:
        base = params.seed
    if params.n > 1 and params.seed is None:
        params.seed = base = 0  # only seeds tell the children of a request apart
    made = asked.id or secrets.token_hex(16)
    nonce = asked.admitted
    if asked.resume is None:
        nonce = _admitted.admit(made, asked.admitted)
    _write_back(params, asked, made, base, nonce)


def _check_constraint(strategy: Strategy) -> None:
    """Parse it, and compile it over single bytes as far as that takes but a moment: what is larger
    is compiled in the engine, and ends its request there where it cannot be.
    """
    try:
        constraint = strategy.build_constraint()
        if strategy.constraint is not None:
            _over_bytes.start(constraint).result(timeout=PATIENCE_SECONDS)
    except TimeoutError:
        return
    except InputError as fault:
        name = f"{ARGUMENT}.strategy.constraint.{fault.argument}"
        raise type(fault)(name, fault.got, fault.accepted) from None


def _write_back(
    params: Any, asked: Asked, made: str, base_seed: int | None, nonce: str | None
) -> None:
    settled = asked.model_copy(update={"id": made, "base_seed": base_seed, "admitted": nonce})
    data = settled.model_dump(mode="json", exclude_none=True)
    params.extra_args = {**params.extra_args, ARGUMENT: data}
