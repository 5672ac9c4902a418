"""The canonical cover of a text: every live canonical token string it may stand in, each with its
probability.

The number of heads of a text is small (one birth a byte with plain BPE), so that the sum is whole:
nothing is left out. Phan et al., "Exact Byte-Level Probabilities from Tokenized Language Models for
FIM-Tasks and Model Ensembles" (arXiv 2410.09303) define it.
"""

from __future__ import annotations

from typing import Any

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.middleware.bytes.heads import Heads, Places
from midstream.middleware.bytes.law import Method, Standing, Target
from midstream.middleware.bytes.reading import Branches, Logits, Task

_ROLLBACK = 32  # bytes that can be taken back without reading again


class CoverText:
    """A text under the target `canonical`: its heads, and what the model says of each.

    root, logits: the tree's node behind the fixed ids, and what follows it [V].
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
    ) -> None:
        self._places = places
        self.vocabulary = vocabulary
        self._heads = Heads(places, vocabulary)
        self.branches = Branches(
            self._heads.parent,
            self._heads.token,
            root=root,
            logits=logits,
            vocabulary=vocabulary,
            mask=places.mask(self._heads.place[0]),
            inverse_temperature=inverse_temperature,
        )

    @property
    def heads(self) -> Heads:
        """The structure of the text."""
        return self._heads

    def __len__(self) -> int:
        return len(self._heads.text)

    def feed(self, text: bytes) -> Task[None]:
        """Push bytes, and read what the heads of the whole text then need: one forward."""
        for byte in text:
            self._heads.push(byte)
        yield from self.read()

    def read(self) -> Task[None]:
        """Read what the heads need."""
        live = [head.node for head in self._heads.live]
        masks = {node: self._places.mask(self._heads.place[node]) for node in live}
        yield from self.branches.read(live, masks)
        self.branches.tidy(self._recent)

    def rollback(self, length: int) -> None:
        """Take back what was pushed after the first `length` bytes."""
        self._heads.rollback(length)
        self.branches.cut(len(self._heads))

    def standing(self) -> list[Standing]:
        """The heads of the text, which must have been read."""
        heads, branches = self._heads, self.branches
        return [
            Standing(
                head.node,
                len(heads.text) - heads.offset[head.node],
                head.trie,
                branches.log_p[head.node],
                branches.rows[head.node],
                head.trie == 0 and self._places.may_end(heads.place[head.node]),
            )
            for head in heads.live
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
        lengths = range(max(last - _ROLLBACK, 0), last + 1)
        return {head.node for length in lengths for head in self._heads.live_at(length)}
