"""The byte laws of one served model."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from midstream.middleware.bytes.beam import Beam
from midstream.middleware.bytes.canonical import Canonical
from midstream.middleware.bytes.healing import Healer
from midstream.middleware.bytes.law import Target
from midstream.middleware.bytes.model import ByteModel
from midstream.middleware.bytes.undecidable import Undecidable
from midstream.middleware.law import PLAIN, Law

if TYPE_CHECKING:
    from midstream.adapters.transformers import TransformersHost


class ByteLaws:
    """Byte models and healers of one host. What its tokenizer makes is read once, when it is asked.

    For any number of threads; the model reads for one at a time where the caller sees to it.
    """

    def __init__(self, host: TransformersHost) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._read = False
        self._canonical: Canonical | None = None
        self.undecided = ""

    def tokens(self, text: bytes) -> int:
        """How many tokens the tokenizer makes of a text, those before it counted in."""
        tokenizer: Any = self._host.tokenizer
        ids: list[int] = tokenizer(text.decode(errors="replace"))["input_ids"]
        return len(ids) + 1

    def model(
        self, target: Target, *, width: int, token_temperature: float, byte: float
    ) -> ByteModel:
        """A model over bytes. byte: the byte temperature. InputError for temperatures."""
        canonical = self._of_tokenizer()
        return ByteModel(
            self._host,
            target=target if canonical is not None else "all",
            beam=Beam(width=width),
            canonical=canonical,
            token_temperature=token_temperature,
            byte_temperature=byte,
        )

    def healer(self, target: Target, law: Law = PLAIN) -> Healer:
        """What draws the ends of prompts."""
        canonical = self._of_tokenizer()
        return Healer(
            self._host,
            self._host.tokenizer,
            target=target if canonical is not None else "all",
            canonical=canonical,
            law=law,
        )

    def _of_tokenizer(self) -> Canonical | None:
        with self._lock:
            if not self._read:
                try:
                    host = self._host
                    self._canonical = Canonical.from_tokenizer(host.tokenizer, host.vocabulary)
                except Undecidable as why:
                    self.undecided = str(why)
                self._read = True
            return self._canonical
