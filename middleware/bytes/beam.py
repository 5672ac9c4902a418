"""The cover of a text over all token strings, by a beam with full support and a bound of what it
leaves out.

Vieira et al., "From Language Models over Tokens to Language Models over Characters" (arXiv
2412.03719) define the sum and the beam. Here no text that can be spelled ever loses its last head,
and what is left out is added up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.sorted_row import log_sum
from midstream.middleware.bytes.foresight import WINDOW, Foresight, foretold
from midstream.middleware.bytes.heads import AnyTokens, Places
from midstream.middleware.bytes.law import Method, Standing, Target
from midstream.middleware.bytes.reading import Branches, Logits, Task
from midstream.middleware.bytes.strings import Strings
from midstream.middleware.errors import InputError

_ROLLBACK = 32
_LIKELY = 0.4  # share of the mass with which a byte is read ahead


@dataclass(frozen=True, slots=True)
class Beam:
    """How many token strings are followed.

    width: of those that end at one byte, at most so many. epsilon: those below this share of the
        text's mass are left out, 0 for none. Of the strings that end at one byte and can go on the
        heaviest is followed always: a byte that some token string can spell keeps a probability
        above 0.
    """

    width: int = 5
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InputError("width", self.width, "an integer, at least 1")
        if not 0 <= self.epsilon < 1:
            raise InputError("epsilon", self.epsilon, "a number from 0 on, below 1")


@dataclass(frozen=True, slots=True)
class _Follow:
    """One of the token strings that are followed."""

    node: int
    trie: int
    log_mass: float  # of what of it goes on with the text


@dataclass(frozen=True, slots=True)
class _Moment:
    """What is followed at one length of the text."""

    live: tuple[_Follow, ...]
    log_pruned: float
    log_reached: float  # of what reached this length, before some of it was left out


class BeamText:
    """A text under the target `all`: the token strings that are followed.

    root, logits: the tree's node behind the fixed ids, and what follows it [V].
    longest: how many tokens the model takes behind these; None for any number. No more is read
        ahead.
    """

    target: Target = "all"
    method: Method = "beam"

    def __init__(
        self,
        places: AnyTokens,
        vocabulary: ByteSortedVocabulary,
        beam: Beam,
        *,
        root: int,
        logits: Logits,
        inverse_temperature: float,
        longest: int | None = None,
    ) -> None:
        self._places = places
        self.vocabulary = vocabulary
        self._beam = beam
        self._log_epsilon = math.log(beam.epsilon) if beam.epsilon else -math.inf
        self._strings = Strings()
        self._history = [_Moment((_Follow(0, 0, 0.0),), -math.inf, 0.0)]
        self.branches = Branches(
            self._strings.parent,
            self._strings.token,
            root=root,
            logits=logits,
            vocabulary=vocabulary,
            mask=None,
            inverse_temperature=inverse_temperature,
            longest=longest,
        )
        self._foresight = Foresight(
            self._strings,
            self.branches,
            vocabulary,
            width=beam.width,
            log_epsilon=self._log_epsilon,
        )

    def __len__(self) -> int:
        return len(self._history) - 1

    @property
    def log_pruned(self) -> float:
        """Log of the mass of all that was left out, when it was left out: it only shrinks after."""
        return self._history[-1].log_pruned

    @property
    def log_reached(self) -> float:
        """Log of the mass that went on with the last byte, before some of it was left out."""
        return self._history[-1].log_reached

    def feed(self, text: bytes, coming: bytes = b"") -> Task[None]:
        """Push bytes, with a forward where something is followed that was not foreseen.

        coming: what will be pushed after them, if known. Behind a single byte it is foretold.
        """
        coming = text + coming[:WINDOW]
        yield from self.read(coming)
        for at, byte in enumerate(text, start=1):
            self._push(byte)
            foretell = at == len(coming) == 1
            yield from self.read(self._foretold() if foretell else coming[at : at + WINDOW])

    def read(self, coming: bytes = b"") -> Task[None]:
        """Read what the strings that are followed need, and with it what coming bytes will need."""
        branches, live = self.branches, self._history[-1].live
        ahead: list[int] = []
        if coming and not self._is_read():
            standing = [(each.node, each.trie, branches.log_p[each.node]) for each in live]
            ahead = self._foresight.look(standing, len(self), coming)
        yield from branches.read([each.node for each in live], None, ahead)
        branches.tidy(self._recent)

    def _is_read(self) -> bool:
        return all(self.branches.has(each.node) for each in self._history[-1].live)

    def _foretold(self) -> bytes:
        if self._is_read():
            return b""
        log_p, rows = self.branches.log_p, self.branches.rows
        heads = [(e.trie, log_p[e.node], rows.get(e.node)) for e in self._history[-1].live]
        return foretold(heads, self.vocabulary, likely=_LIKELY)

    def rollback(self, length: int) -> None:
        """Take back what was pushed after the first `length` bytes."""
        del self._history[length + 1 :]

    def standing(self) -> list[Standing]:
        """What is followed, which must have been read."""
        branches = self.branches
        return [
            Standing(
                each.node,
                len(self) - self._strings.offset[each.node],
                each.trie,
                branches.log_p[each.node],
                branches.rows[each.node],
                each.trie == 0,
            )
            for each in self._history[-1].live
        ]

    @property
    def places(self) -> Places:
        """All token strings count."""
        return self._places

    def place(self, node: int) -> Any:
        """Of a node: they have but one."""
        return self._places.start()

    def path(self, node: int) -> list[int]:
        """The tokens of a node."""
        return self._strings.path(node)

    def _recent(self) -> set[int]:
        recent = self._history[-1 - _ROLLBACK :]
        coming = {n for n in self.branches.ahead if self._strings.offset[n] > len(self)}
        return coming.union(each.node for moment in recent for each in moment.live)

    def _push(self, byte: int) -> None:
        known, branches = self.vocabulary, self.branches
        ended: list[tuple[float, int, int]] = []
        going: list[_Follow] = []
        for each in self._history[-1].live:
            trie = known.child(each.trie, byte)
            if trie < 0:
                continue
            log_p, row = branches.log_p[each.node], branches.rows[each.node]
            low, ends = int(known.low[trie]), int(known.ends[trie])
            for token in known.order[low:ends].tolist():
                ended.append((log_p + row.log_p(token), each.node, token))
            log_mass = log_p + row.log_sum(ends, int(known.high[trie]))
            if log_mass > -math.inf:
                going.append(_Follow(each.node, trie, log_mass))
        ended = sorted((end for end in ended if end[0] > -math.inf), reverse=True)
        masses = [*(end[0] for end in ended), *(each.log_mass for each in going)]
        reached = log_sum(masses)
        least = reached + self._log_epsilon
        kept = self._kept(going, least)
        count = sum(end[0] >= least for end in ended[: self._beam.width])
        count = max(count, min(len(ended), 1))
        dropped = [end[0] for end in ended[count:]]
        nodes = {each.node for each in kept}
        dropped += [each.log_mass for each in going if each.node not in nodes]
        born = [self._bear(*end) for end in ended[:count]]
        log_pruned = log_sum([self.log_pruned, *dropped])
        self._history.append(_Moment((*kept, *born), log_pruned, reached))

    def _kept(self, going: list[_Follow], least: float) -> list[_Follow]:
        """Those that weigh enough, and of each length of the written part the heaviest."""
        heaviest: dict[int, _Follow] = {}
        for each in going:
            offset = self._strings.offset[each.node]
            if offset not in heaviest or each.log_mass > heaviest[offset].log_mass:
                heaviest[offset] = each
        best = {each.node for each in heaviest.values()}
        return [each for each in going if each.log_mass >= least or each.node in best]

    def _bear(self, log_p: float, parent: int, token: int) -> _Follow:
        node = self._strings.child(parent, token, len(self._history))
        self.branches.log_p[node] = log_p
        return _Follow(node, 0, log_p)
