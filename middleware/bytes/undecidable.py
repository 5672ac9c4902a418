"""The error for a tokenizer whose own token strings cannot be told apart from others."""

from __future__ import annotations

from midstream.middleware.errors import VocabularyError

ACCEPTED = (
    "BPE over bytes or over characters with byte fallback, of tokenizers, tiktoken, sentencepiece "
    "or mistral-common, with a pre-tokenizer that is known; or target='all'"
)


class Undecidable(VocabularyError):  # noqa: N818 - the contract's name
    """A tokenizer of which it cannot be decided, token by token, what it would itself make."""

    def __init__(self, got: str) -> None:
        super().__init__("tokenizer", got, ACCEPTED)
