"""llguidance's tokenizer, made from the bytes of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from midstream.middleware.constraints.cache import BuiltOnce
from midstream.middleware.errors import VocabularyError
from midstream.middleware.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLTokenizer

TOKENIZERS_KEPT = 4
"""Of about 200 bytes a token."""

LONGEST_BYTES = 1024
"""Of a token: llguidance's trie counts no deeper."""


@dataclass(frozen=True, slots=True, eq=False)
class EngineTokens:
    """A vocabulary as llguidance sees it.

    Ids are ours, with three differences: of tokens with the same bytes it knows the first alone;
    special tokens, end of sequence among them, and tokens that hold the byte 0xFF, which is its
    mark for special ones and never part of UTF-8, have no bytes there and are never allowed; and
    its end of sequence is an id of its own, V, never used.

    engine_ids: for each id of the vocabulary the one to ask llguidance about, -1 for those never
    allowed.
    twins, firsts: ids that repeat the bytes of an earlier one, and that one, int64.
    words: of llguidance's masks, which are one bit longer than ours.
    """

    tokenizer: LLTokenizer
    engine_ids: Sequence[int]
    twins: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]
    words: int


class _Wrapper:
    """What `LLTokenizer` reads from a tokenizer. With `no_forcing` it is never asked to encode."""

    is_tokenizer_wrapper = True
    eos_token_id = None
    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens

    def __call__(self, text: bytes | str) -> list[int]:
        raise NotImplementedError("a vocabulary knows bytes, not how text is encoded")


_tokenizers: BuiltOnce[str, EngineTokens] = BuiltOnce(TOKENIZERS_KEPT)


def engine_tokens(vocabulary: Vocabulary) -> EngineTokens:
    """The `EngineTokens` of a vocabulary, made once for each fingerprint."""
    return _tokenizers.get(vocabulary.fingerprint, lambda: _build(vocabulary))


def _build(vocabulary: Vocabulary) -> EngineTokens:
    from llguidance import LLTokenizer

    first_of: dict[bytes, int] = {}
    engine_ids: list[int] = []
    words: list[bytes] = []
    twins: list[int] = []
    for token, spelling in enumerate(vocabulary.token_bytes):
        if len(spelling) > LONGEST_BYTES:
            accepted = f"tokens of at most {LONGEST_BYTES} bytes for a grammar or a JSON Schema"
            raise VocabularyError(f"vocabulary[{token}]", f"{len(spelling)} bytes", accepted)
        usable = bool(spelling) and b"\xff" not in spelling
        first = first_of.setdefault(spelling, token) if usable else -1
        engine_ids.append(first)
        words.append(spelling if first == token else b"")
        if usable and first != token:
            twins.append(token)
    repeated = np.asarray(twins, np.int64)
    tokenizer = LLTokenizer(_Wrapper(words))  # type: ignore[arg-type]  # read by attribute
    return EngineTokens(
        tokenizer,
        engine_ids,
        repeated,
        np.asarray(engine_ids, np.int64)[repeated],
        (len(vocabulary) + 1 + 31) // 32,
    )
