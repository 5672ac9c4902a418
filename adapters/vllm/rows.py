"""The laws of the next token, read from an engine by ordinary requests of one token.

So an engine is a `Host` too: for byte laws and exact healing, which read a few short prompts that
share their beginnings and hit the prefix cache. Who decodes whole texts lets the engine draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from midstream.middleware.errors import InputError

if TYPE_CHECKING:
    from midstream.adapters.vllm.engines import Engine

Float32 = npt.NDArray[np.float32]
Prompts = Sequence[Sequence[int]]
Read = Callable[[Prompts], Float32]

TOKEN_PREFIX = "token_id:"
"""How a server names a token that is asked for by its id."""


class EngineRows:
    """Live sequences of an engine, as `Rows`: each is read whole, when its logits are looked at."""

    def __init__(self, read: Read, prompts: Prompts) -> None:
        self._read = read
        self._prompts = [list(prompt) for prompt in prompts]
        self._logits: Float32 | None = None

    @property
    def logits(self) -> Float32:
        """Log probabilities [R, V] of each sequence's next token, float32, at temperature 1."""
        if self._logits is None:
            self._logits = self._read(self._prompts)
        return self._logits

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> EngineRows:
        """See `Rows.advance`."""
        grown = [[*self._prompts[p], int(t)] for p, t in zip(parents, tokens, strict=True)]
        return EngineRows(self._read, grown)


def check_shown(config: Any, size: int) -> None:
    """InputError for an engine that does not show the probabilities of all tokens as they are."""
    shown, mode = config.max_logprobs, str(config.logprobs_mode)
    if shown != -1 and shown < size:
        got = f"an engine that shows {shown} log probabilities a token"
        raise InputError("llm", got, "one made with max_logprobs=-1")
    if not mode.startswith("raw"):
        raise InputError("llm", f"logprobs_mode={mode!r}", "raw_logprobs: the model's own law")


def read_engine(engine: Engine, prompts: Mapping[str, Sequence[int]], size: int) -> Float32:
    """Log probabilities [R, V] of what follows each prompt, from an engine in this process.

    prompts: by the name of the request.
    """
    from vllm import SamplingParams

    fields = {"max_tokens": 1, "logprobs": -1, "flat_logprobs": True, "detokenize": False}
    asked = [(name, list(prompt), SamplingParams(**fields)) for name, prompt in prompts.items()]
    answers = engine.complete(asked, None)
    return np.stack([of_flat(answer.logprobs, size) for answer in answers])


def of_flat(found: Any, size: int) -> Float32:
    """A row [V] of an engine's flat log probabilities."""
    return _row(found.token_ids, found.logprobs, size)


def of_named(found: dict[str, float], size: int) -> Float32:
    """A row [V] of the log probabilities in a server's answer, by `TOKEN_PREFIX` and id."""
    ids = [int(name.removeprefix(TOKEN_PREFIX)) for name in found]
    return _row(ids, found.values(), size)


def request_of(prompt: Sequence[int], size: int) -> dict[str, Any]:
    """The body of the request that shows what follows a prompt, but for the model's name."""
    return {
        "prompt": list(prompt),
        "max_tokens": 1,
        "logprobs": size,
        "return_tokens_as_token_ids": True,
        "add_special_tokens": False,
    }


def _row(ids: Sequence[int], values: Iterable[float], size: int) -> Float32:
    row = np.full(size, -np.inf, np.float32)
    row[np.asarray(ids, np.int64)] = np.fromiter(values, np.float32, len(ids))
    row[row <= _NO_MASS] = -np.inf
    return row


_NO_MASS = -9999.0
"""What engines write in JSON in the place of -inf."""
