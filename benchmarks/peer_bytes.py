"""The peer for bytes, genlm-bytes 0.2.0, on the same model and without its idle timer."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from genlm.backend.llm import AsyncTransformer
from genlm.backend.tokenization import Token
from genlm.bytes import BeamParams, ByteBeamState
from genlm.bytes.trie import TokenByteTrie

Float = npt.NDArray[np.float64]


class PeerBytes:
    """Its beam of `width` states.

    timeout: seconds that its backend waits for more queries; its default is 0.02. The trie of the
    vocabulary, which it makes for every text, is made once here and its time left out.
    """

    def __init__(
        self, model: Any, tokenizer: Any, end: bytes, *, width: int, timeout: float = 0.0
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._backend = AsyncTransformer(model, tokenizer, batch_size=64, timeout=timeout)
        parameters = BeamParams(K=width, eos_byte_strings=[end])
        self._start = self._loop.run_until_complete(
            ByteBeamState.initial(self._backend, parameters)
        )

    def close(self) -> None:
        """Stop its trie's task."""
        self._loop.run_until_complete(self._start.cleanup())
        self._loop.close()

    def law(self, prefix: bytes) -> Float:
        """Of the next byte, [257]."""
        self._backend.clear_cache()
        return self._loop.run_until_complete(self._law(prefix))

    def score(self, text: bytes) -> Float:
        """Log p of each byte of a text."""
        self._backend.clear_cache()
        return self._loop.run_until_complete(self._score(text))

    def sample(self, prefix: bytes, count: int, seed: int) -> bytes:
        """So many bytes after a prefix, or fewer."""
        self._backend.clear_cache()
        return self._loop.run_until_complete(self._sample(prefix, count, seed))

    async def _law(self, prefix: bytes) -> Float:
        state = await self._start.prefill(prefix)
        return _bytes_and_end(await state.logp_next())

    async def _score(self, text: bytes) -> Float:
        state, found = self._start, []
        for byte in text:
            state = state.prune()
            if not len(state):
                return np.array([*found, *[-math.inf] * (len(text) - len(found))])
            found.append(float((await state.logp_next())[byte]))
            state = await (state << byte)
        return np.array(found)

    async def _sample(self, prefix: bytes, count: int, seed: int) -> bytes:
        state = await self._start.prefill(prefix)
        rng, out = np.random.default_rng(seed), bytearray()
        while len(out) < count:
            state = state.prune()
            law = _bytes_and_end(await state.logp_next())
            byte = int(rng.choice(257, p=law / law.sum()))
            if byte == 256:
                break
            out.append(byte)
            state = await (state << byte)
        return bytes(out)


def _bytes_and_end(law: Any) -> Float:
    """Of its 258 symbols the bytes and the end of sequence."""
    logs = np.asarray(law.ps, np.float64)
    return np.exp(np.append(logs[:256], logs[257]))


def sparse_trie(token_bytes: list[bytes]) -> Any:
    """Its trie, whose masses are a sparse product."""
    words = [b or b"<eos>" for b in token_bytes]
    return TokenByteTrie(
        [Token(token_id=i, byte_string=b) for i, b in enumerate(words)], device="cpu"
    )
