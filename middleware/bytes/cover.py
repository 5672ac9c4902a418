"""The canonical cover of a text: every live canonical token string it may stand in, each with its
probability.

The number of heads of a text is small (one birth a byte with plain BPE), so that the sum is whole:
nothing is left out. Phan et al., "Exact Byte-Level Probabilities from Tokenized Language Models for
FIM-Tasks and Model Ensembles" (arXiv 2410.09303) define it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.middleware.bytes.foresight import foretold
from midstream.middleware.bytes.heads import Head, Heads, Places
from midstream.middleware.bytes.law import Method, Standing, Target
from midstream.middleware.bytes.reading import Branches, Logits, Task

_ROLLBACK = 32  # bytes that can be taken back without reading again
_LIKELY = 0.85  # share of the mass with which a byte is read ahead: few rows are read in vain


class CoverText:
    """A text under the target `canonical`: its heads, and what the model says of each.

    root, logits: the tree's node behind the fixed ids, and what follows it [V].
    longest: how many tokens the model takes behind these; None for any number. No more is read
        ahead.
    """

    target: Target = "canonical"
    method: Method = "cover"
    log_pruned = float("-inf")

    def __init__(
        self,
        places: Places,
        vocabulary: ByteSortedVocabulary,
        *,
        root: int,
        logits: Logits,
        inverse_temperature: float,
        longest: int | None = None,
    ) -> None:
        self._places = places
        self.vocabulary = vocabulary
        self._heads = Heads(places, vocabulary)
        self._length = 0
        self.branches = Branches(
            self._heads.parent,
            self._heads.token,
            root=root,
            logits=logits,
            vocabulary=vocabulary,
            mask=places.mask(self._heads.place[0]),
            inverse_temperature=inverse_temperature,
            longest=longest,
        )

    @property
    def heads(self) -> Heads:
        """The structure of the text, and of what was foretold behind it."""
        return self._heads

    def __len__(self) -> int:
        return self._length

    def feed(self, text: bytes) -> Task[None]:
        """Push bytes, and read what the heads of the whole text then need: one forward at most.

        With a single byte what is likely to come is read ahead, if there is anything to be read.
        """
        heads = self._heads
        for byte in text:
            if len(heads.text) > self._length and heads.text[self._length] != byte:
                self.rollback(self._length)
            if len(heads.text) == self._length:
                heads.push(byte)
            self._length += 1
        yield from self._read(self._foretell() if len(text) == 1 else ())

    def read(self) -> Task[None]:
        """Read what the heads need."""
        yield from self._read(())

    def _read(self, ahead: Iterable[int]) -> Task[None]:
        heads, branches = self._heads, self.branches
        live = [head.node for head in self._live]
        masks = {n: self._places.mask(heads.place[n]) for n in live if n not in branches.rows}
        yield from branches.read(live, masks, ahead)
        branches.tidy(self._recent)

    @property
    def _live(self) -> tuple[Head, ...]:
        """The heads of the text: `_heads` may have gone on with what was foretold."""
        return self._heads.live_at(self._length)

    def _foretell(self) -> Iterable[int]:
        """Push what is likely to come, without its being of the text, and tell the new nodes."""
        heads, branches, live = self._heads, self.branches, self._live
        first = len(heads)
        if len(heads.text) == self._length and not all(branches.has(head.node) for head in live):
            told = [(h.trie, branches.weigh(h.node), branches.rows.get(h.node)) for h in live]
            for byte in foretold(told, self.vocabulary, likely=_LIKELY):
                heads.push(byte)
        return range(first, len(heads))

    def rollback(self, length: int) -> None:
        """Take back what was pushed after the first `length` bytes."""
        self._length = length
        self._heads.rollback(length)
        self.branches.cut(len(self._heads))

    def standing(self) -> list[Standing]:
        """The heads of the text, which must have been read."""
        heads, branches = self._heads, self.branches
        return [
            Standing(
                head.node,
                self._length - heads.offset[head.node],
                head.trie,
                branches.log_p[head.node],
                branches.rows[head.node],
                head.trie == 0 and self._places.may_end(heads.place[head.node]),
            )
            for head in self._live
        ]

    @property
    def places(self) -> Places:
        """Which token strings count."""
        return self._places

    def place(self, node: int) -> Any:
        """Of a node."""
        return self._heads.place[node]

    def path(self, node: int) -> list[int]:
        """The tokens of a node."""
        return self._heads.path(node)

    def _recent(self) -> set[int]:
        last = len(self._heads.text)
        lengths = range(max(self._length - _ROLLBACK, 0), last + 1)
        return {head.node for length in lengths for head in self._heads.live_at(length)}
