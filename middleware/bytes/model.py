"""A model over tokens as a model over bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.beam import Beam, BeamText
from midstream.middleware.bytes.context import context_of, room_behind
from midstream.middleware.bytes.cover import CoverText
from midstream.middleware.bytes.elements import Text, list_cover
from midstream.middleware.bytes.heads import AnyTokens, Places
from midstream.middleware.bytes.law import ByteLaw, Method, Target
from midstream.middleware.bytes.reading import Logits, Reader, Task
from midstream.middleware.bytes.sampling import greedy_bytes, sample_by_bytes, sample_bytes
from midstream.middleware.bytes.scoring import TextReport, score_all, score_canonical
from midstream.middleware.bytes.state import ByteState, law_of
from midstream.middleware.bytes.tail import byte_sorted
from midstream.middleware.bytes.undecidable import Undecidable
from midstream.middleware.errors import InputError
from midstream.middleware.host import Host
from midstream.middleware.random import Stream, StreamSource, sequence_of

if TYPE_CHECKING:
    from midstream.middleware.bytes.canonical import Canonical

Float = npt.NDArray[np.float64]
Context = Sequence[int] | None


class ByteModel:
    """Exact laws over bytes of the model that a host owns.

    host: a `Host`; one with a method `tree` (`TreeHost`) reads every token once.
    target: "canonical", the token strings that the tokenizer itself would make: their number is
        small, and their sum whole. "all", every token string: the model's true law over bytes, by a
        beam whose error is bounded (`ByteLaw.bounds`).
    beam: of target "all".
    canonical: of the tokenizer; None makes it of `host.tokenizer`. A tokenizer for which it cannot
        be decided what is canonical is served by the target "all": then `self.target` is "all", and
        `self.undecided` says why.
    token_temperature: of each law of the next token, before anything is summed; part of the model.
    byte_temperature: of each law of the next byte: p^(1 / temperature), normalised.

    Texts are bytes, valid UTF-8 or not. Before each stand fixed ids, `context_ids`, which are never
    read as text: None takes the tokenizer's beginning of sequence, and where it has none the end of
    sequence, which models read between documents. Where the tokenizer writes a space before a text,
    so does this model.
    No byte string raises: what no token string covers has probability 0, and a law with the status
    "dead".

    Raises InputError for temperatures that are not above 0, and for any other target.
    """

    def __init__(
        self,
        host: Host,
        *,
        target: Target = "canonical",
        beam: Beam | None = None,
        canonical: Canonical | None = None,
        token_temperature: float = 1.0,
        byte_temperature: float = 1.0,
    ) -> None:
        if target not in ("canonical", "all"):
            raise InputError("target", target, '"canonical" or "all"')
        self._host = host
        self._vocabulary = byte_sorted(host.vocabulary)
        self._beam = beam if beam is not None else Beam()
        self._inverse = 1.0 / _temperature("token_temperature", token_temperature)
        self._byte_temperature = _temperature("byte_temperature", byte_temperature)
        self._any = AnyTokens(host.vocabulary)
        self.target: Target = target
        self.undecided: str | None = None
        self._places: Places | None = None
        if target == "canonical":
            self._decide(canonical)

    def _decide(self, canonical: Canonical | None) -> None:
        if canonical is None:
            from midstream.middleware.bytes.canonical import Canonical

            tokenizer = getattr(self._host, "tokenizer", None)
            if tokenizer is None:
                accepted = "a Canonical, since the host shows no tokenizer to make it of"
                raise InputError("canonical", None, accepted)
            try:
                canonical = Canonical.from_tokenizer(tokenizer, self._host.vocabulary)
            except Undecidable as why:
                self.target, self.undecided = "all", str(why)
                return
        self._places = canonical

    @property
    def method(self) -> Method:
        """How sums are made: "cover", the whole of it, or "beam"."""
        return "cover" if self.target == "canonical" else "beam"

    def next_byte(self, prefix: bytes, *, context_ids: Context = None) -> Float:
        """The law of the byte after a prefix, and in bin 256 of the end: float64 [257].

        Sums to 1 (see `ByteLaw.log_p`), or is 0 everywhere where nothing covers the prefix.
        """
        return self.law(prefix, context_ids=context_ids).p

    def law(self, prefix: bytes, *, context_ids: Context = None) -> ByteLaw:
        """The law after a prefix, with the mass of the prefix and what was left out."""
        return self.laws([prefix], contexts=[context_ids])[0]

    def laws(
        self, prefixes: Sequence[bytes], *, contexts: Sequence[Context] | None = None
    ) -> list[ByteLaw]:
        """The laws after several prefixes, read together."""
        reader, texts = self._open(prefixes, contexts)
        tasks = [
            law_of(text, self._vocabulary, self._lead(prefix) + prefix)
            for text, prefix in zip(texts, prefixes, strict=True)
        ]
        return [law.tempered(self._byte_temperature) for law in reader.run(tasks)]

    def state(self, prefix: bytes = b"", *, context_ids: Context = None) -> ByteState:
        """A text to go on with byte by byte."""
        reader, (text,) = self._open([prefix], [context_ids])
        state = ByteState(
            reader,
            text,
            self._vocabulary,
            lead=self._lead(prefix),
            byte_temperature=self._byte_temperature,
        )
        state.push(prefix)
        return state

    def score(self, text: bytes, *, context_ids: Context = None) -> float:
        """log P that what the model writes begins with `text`, in nats; -inf for no cover.

        Under "canonical" of canonical token strings alone: a lower bound. Under "all" of those that
        the beam has kept: a lower bound too. No byte temperature counts.
        """
        return self.report(text, context_ids=context_ids).log_p

    def report(self, text: bytes, *, context_ids: Context = None) -> TextReport:
        """The score byte by byte, in both readings, with the token-level figure.

        Under "canonical" the whole text is one forward, in chunks.
        """
        reader, (empty,) = self._open([text], [context_ids])
        lead = self._lead(text)
        if isinstance(empty, CoverText):
            return reader.run([score_canonical(empty, lead, text)])[0]
        assert isinstance(empty, BeamText)
        return reader.run([score_all(empty, lead, text)])[0]

    def cover(
        self, prefix: bytes, *, context_ids: Context = None
    ) -> list[tuple[tuple[int, ...], float]]:
        """The cover of a prefix: its token strings with log P each, the most probable first.

        Of a token string the last token alone may go on over the end of the prefix; all but the
        last spell less than the prefix. Under "all": of the beam. The empty prefix is covered by no
        tokens, [((), 0.0)].
        """
        reader, (text,) = self._open([prefix], [context_ids])
        reader.run([text.feed(self._lead(prefix) + prefix)])
        return list_cover(text, self._vocabulary)

    def sample(self, prefix: bytes, n: int, seed: int, *, context_ids: Context = None) -> bytes:
        """`n` bytes after a prefix, each drawn from `next_byte`; fewer where the text ends.

        Draws an element of the prefix's cover, then tokens: a forward for each token. Under "all"
        exact up to what the beam leaves out of the prefix's cover.
        """
        return self.samples([prefix], n, [seed], contexts=[context_ids])[0]

    def samples(
        self,
        prefixes: Sequence[bytes],
        n: int,
        seeds: Sequence[int],
        *,
        contexts: Sequence[Context] | None = None,
    ) -> list[bytes]:
        """`sample` of several prefixes, read together: the same bytes as one by one."""
        reader, texts = self._open(prefixes, contexts)
        tasks = [
            self._sample(text, prefix, n, seed)
            for text, prefix, seed in zip(texts, prefixes, seeds, strict=True)
        ]
        return reader.run(tasks)

    def greedy(self, prefix: bytes, n: int, *, context_ids: Context = None) -> bytes:
        """`n` bytes after a prefix, the most probable one each time; fewer where that is the end.

        Mode seeking; a forward for each byte, fewer where bytes are foretold.
        """
        reader, (text,) = self._open([prefix], [context_ids])
        whole = self._lead(prefix) + prefix
        return reader.run([greedy_bytes(text, self._vocabulary, whole, n)])[0]

    def _sample(self, text: Text, prefix: bytes, n: int, seed: int) -> Task[bytes]:
        sequence = sequence_of(list(prefix))

        def sources(position: int) -> StreamSource:
            return StreamSource(Stream(seed, sequence, position))

        whole = self._lead(prefix) + prefix
        if self._byte_temperature != 1.0:
            temperature = self._byte_temperature
            return sample_by_bytes(text, self._vocabulary, whole, n, sources, temperature)
        return sample_bytes(text, self._vocabulary, whole, n, sources)

    def _lead(self, text: bytes) -> bytes:
        """What the tokenizer writes before a text."""
        spaces = self._host.vocabulary.prefix_space
        adds = spaces == "always" or (spaces == "unless_present" and text[:1] != b" ")
        return b" " if adds else b""

    def _open(
        self, texts: Sequence[bytes], contexts: Sequence[Context] | None
    ) -> tuple[Reader, list[Text]]:
        """A reader for a batch, and an empty text for each of it."""
        if not texts:
            raise InputError("prefixes", "none", "at least one")
        if contexts is None:
            contexts = [None] * len(texts)
        if len(contexts) != len(texts):
            raise InputError("contexts", f"{len(contexts)}", f"{len(texts)}, one for each text")
        fixed = [context_of(self._host, ids) for ids in contexts]
        reader = Reader(self._host, fixed)
        return reader, [self._text(i, reader.first[i], len(ids)) for i, ids in enumerate(fixed)]

    def _text(self, root: int, logits: Logits, fixed: int) -> Text:
        options: dict[str, Any] = {
            "longest": room_behind(self._host, fixed),
            "root": root,
            "logits": logits,
            "inverse_temperature": self._inverse,
        }
        if self._places is not None:
            return CoverText(self._places, self._vocabulary, **options)
        return BeamText(self._any, self._vocabulary, self._beam, **options)


def _temperature(name: str, value: float) -> float:
    if not 1e-6 <= value < math.inf:
        raise InputError(name, value, "a finite number from 1e-6 on")
    return float(value)
