"""Admission of a request in the server's event loop: bounded, parsed and named, in under 5 ms."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from midstream.adapters.vllm.compiling import Compiler
from midstream.adapters.vllm.request import ARGUMENT, Asked, asked_of, plan_from
from midstream.middleware.constraints import Grammar, JsonSchema, Regex
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.strategy_constraint import AllOfData, ConstraintData, RegexData
from midstream.middleware.vocabulary import Vocabulary

PATIENCE_SECONDS = 0.002
"""How much processor time a small grammar may take while the server's event loop waits for it."""

LONGEST_WAIT_SECONDS = 0.1
"""How long that may take by the clock, on a machine that is too busy to compile at once."""

PATTERN_CHARACTERS = 1000
"""Of patterns that are parsed here: about 1 ms. Larger ones are read in the engine."""

GRAMMAR_CHARACTERS = 4000
"""Of a schema or grammar that is compiled here. Most take less than a millisecond."""

PARTS = 100
"""Constraints within `all_of`."""

_LOOK_SECONDS = 0.0005  # between two looks at the processor time

_A_PATTERN = 16
"""What each pattern costs besides its length, in characters."""

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
# What the first of each kind must import and build is done before any request comes.
Regex("a|b")
_over_bytes.start(JsonSchema({"type": "null"}))


def admit(params: Any) -> None:
    """Check a request's parameters, and write its id and base seed back into them.

    Raises InputError, naming the field.
    """
    asked = asked_of(params)
    if asked is None:
        return
    _check_constraint(plan_from(asked, params).strategy.constraint)
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


def _check_constraint(constraint: ConstraintData | None) -> None:
    """Parse it, and compile what is small of its grammars over single bytes: what is larger is read
    in the engine, beside its steps, and ends its request there where it cannot be compiled.
    """
    parts = [*_parts(constraint)]
    if len(parts) > PARTS:
        name = f"{ARGUMENT}.strategy.constraint"
        raise StrategyError(name, f"{len(parts)} constraints", f"at most {PARTS}")
    patterns = sum(len(part.regex) + _A_PATTERN for part in parts if isinstance(part, RegexData))
    try:
        for part in parts:
            if isinstance(part, RegexData) and patterns > PATTERN_CHARACTERS:
                continue
            built = part.build()
            if len(parts) == 1 and isinstance(built, JsonSchema | Grammar):
                _try(built)
    except InputError as fault:
        name = f"{ARGUMENT}.strategy.constraint.{fault.argument}"
        raise type(fault)(name, fault.got, fault.accepted) from None


def _try(grammar: JsonSchema | Grammar) -> None:
    """Compile it if it is small. Raises ConstraintError where that fails within PATIENCE_SECONDS:
    of processor time, so that it does not depend on what else the machine does.
    """
    text = grammar.schema if isinstance(grammar, JsonSchema) else grammar.lark
    if len(text) > GRAMMAR_CHARACTERS or grammar.wild:
        return
    compiling = _over_bytes.start(grammar)
    used, begin = _beside(), time.monotonic()
    while time.monotonic() - begin < LONGEST_WAIT_SECONDS:
        try:
            compiling.result(timeout=_LOOK_SECONDS)
            return
        except TimeoutError:
            if _beside() - used > PATIENCE_SECONDS:
                return


def _beside() -> float:
    """Processor time of the process's other threads, in seconds."""
    return time.process_time() - time.thread_time()


def _parts(constraint: ConstraintData | None) -> Iterator[ConstraintData]:
    if isinstance(constraint, AllOfData):
        for one in constraint.all_of:
            yield from _parts(one)
    elif constraint is not None:
        yield constraint


def _write_back(
    params: Any, asked: Asked, made: str, base_seed: int | None, nonce: str | None
) -> None:
    settled = asked.model_copy(update={"id": made, "base_seed": base_seed, "admitted": nonce})
    data = settled.model_dump(mode="json", exclude_none=True)
    params.extra_args = {**params.extra_args, ARGUMENT: data}
