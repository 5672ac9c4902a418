"""The vocabularies that streams may draw for: the models' own, and those that clients sent."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from midstream.adapters.sidecar.limits import Limits
from midstream.middleware.constraints.cache import BuiltOnce
from midstream.middleware.errors import VocabularyError
from midstream.middleware.vocabulary import Vocabulary

LONGEST_TOKEN_BYTES = 1024
ALL_TOKENS_BYTES = (4 << 20) - 1
"""Beyond these llguidance's trie overflows. Real vocabularies stay below 300 bytes and 3 MB."""

READ_SECONDS = 10
READ_BYTES = 1 << 30
"""Of processor time and memory for a tokenizer.json; 24 MB of 262,000 tokens take 3 s, 0.6 GB."""

_CHILD = "midstream.adapters.sidecar.tokenizer_child"
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
)  # each thread reserves memory, which would count


class Vocabularies:
    """Vocabularies by what a handshake says of them. Any number of threads may ask.

    own: gives those of the server's models, always there. Of the clients' the last
    `limits.vocabularies` are kept; a stream keeps its own alive.
    """

    def __init__(self, own: Callable[[], Iterable[Vocabulary]], limits: Limits) -> None:
        self._own = own
        self._limits = limits
        self._built: BuiltOnce[tuple[str, tuple[int, ...]], Vocabulary] = BuiltOnce(
            limits.vocabularies
        )
        self._sent: OrderedDict[str, Vocabulary] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, fingerprint: str, eos_ids: Sequence[int] = ()) -> Vocabulary | None:
        """A vocabulary that is known, or None.

        eos_ids: end texts there in the place of its own.
        """
        own = {vocabulary.fingerprint: vocabulary for vocabulary in self._own()}
        with self._lock:
            known = own.get(fingerprint) or self._sent.get(fingerprint)
            if fingerprint in self._sent:
                self._sent.move_to_end(fingerprint)
        if known is None or not eos_ids or tuple(eos_ids) == known.eos_ids:
            return known
        found = known

        def build() -> Vocabulary:
            return Vocabulary(
                found.token_bytes,
                eos_ids=eos_ids,
                special_ids=found.special_ids,
                prefix_space=found.prefix_space,
            )

        return self._once(fingerprint, eos_ids, build)

    def read_json(self, text: bytes, eos_ids: Sequence[int]) -> Vocabulary:
        """The vocabulary of a tokenizer.json. eos_ids: none are those that it names.

        Raises VocabularyError for a text that is none, or too large, or takes too long.
        """
        most = self._limits.tokenizer_bytes
        if len(text) > most:
            raise VocabularyError("tokenizer_json", f"{len(text)} bytes", f"at most {most}")
        digest = "json " + hashlib.sha256(text).hexdigest()
        return self._once(digest, eos_ids, lambda: self._checked(_read(text, eos_ids)))

    def read_table(self, tokens: Sequence[bytes], eos_ids: Sequence[int]) -> Vocabulary:
        """The vocabulary of a table of all tokens' bytes, whose end of sequence must be told.

        Raises VocabularyError for a table that is none, or too large.
        """
        if not eos_ids:
            accepted = "at least one id: a table of tokens does not say which of them ends a text"
            raise VocabularyError("eos_ids", "none", accepted)
        size = sum(map(len, tokens))
        if size > self._limits.tokenizer_bytes:
            accepted = f"at most {self._limits.tokenizer_bytes}"
            raise VocabularyError("tokens", f"{size} bytes", accepted)
        digest = hashlib.sha256(json.dumps([len(token) for token in tokens]).encode())
        digest.update(b"".join(tokens))
        return self._once(
            "table " + digest.hexdigest(),
            eos_ids,
            lambda: self._checked(_table(tokens, eos_ids)),
        )

    def _checked(self, vocabulary: Vocabulary) -> Vocabulary:
        """VocabularyError where it is larger than what constraints can be compiled for."""
        lengths = list(map(len, vocabulary.token_bytes))
        for what, got, most in (
            ("tokens", len(lengths), self._limits.vocabulary),
            ("bytes in one token", max(lengths), LONGEST_TOKEN_BYTES),
            ("bytes in all tokens", sum(lengths), ALL_TOKENS_BYTES),
        ):
            if got > most:
                raise VocabularyError("vocabulary", f"{got} {what}", f"at most {most}")
        return vocabulary

    def _once(
        self, source: str, eos_ids: Sequence[int], build: Callable[[], Vocabulary]
    ) -> Vocabulary:
        vocabulary = self._built.get((source, tuple(eos_ids)), build)
        with self._lock:
            self._sent[vocabulary.fingerprint] = vocabulary
            self._sent.move_to_end(vocabulary.fingerprint)
            while len(self._sent) > self._limits.vocabularies:
                self._sent.popitem(last=False)
        return vocabulary


def _table(tokens: Sequence[bytes], eos_ids: Sequence[int]) -> Vocabulary:
    try:
        return Vocabulary(tokens, eos_ids=eos_ids)
    except VocabularyError as error:
        argument = "eos_ids" if error.argument == "eos_ids" else "tokens"
        raise VocabularyError(argument, error.got, error.accepted) from None


def _read(text: bytes, eos_ids: Sequence[int]) -> Vocabulary:
    """The vocabulary of a tokenizer.json, by way of a child process."""
    order = {"seconds": READ_SECONDS, "memory_bytes": READ_BYTES, "eos_ids": list(eos_ids)}
    accepted = f"one that is read within {READ_SECONDS} s and {READ_BYTES >> 20} MiB"
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", _CHILD],
            input=json.dumps(order).encode() + b"\n" + text,
            capture_output=True,
            timeout=2 * READ_SECONDS,
            check=False,
            env={**os.environ, **_ONE_THREAD},
        )
    except subprocess.TimeoutExpired:
        raise VocabularyError("tokenizer_json", "one that takes longer", accepted) from None
    head, _, data = child.stdout.partition(b"\n")
    if child.returncode or not head:
        raise VocabularyError("tokenizer_json", "one that takes more", accepted)
    return _vocabulary(json.loads(head), data)


def _vocabulary(header: dict[str, Any], data: bytes) -> Vocabulary:
    if "error" in header:
        argument, got, accepted = header["error"]
        known = argument == "eos_ids"
        raise VocabularyError(argument if known else "tokenizer_json", got, accepted)
    tokens, begin = [], 0
    for length in header["lengths"]:
        tokens.append(data[begin : begin + length])
        begin += length
    return Vocabulary(
        tokens,
        eos_ids=header["eos_ids"],
        special_ids=header["special_ids"],
        prefix_space=header["prefix_space"],
    )
