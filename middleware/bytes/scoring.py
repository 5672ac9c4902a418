"""The probability of a whole text, byte by byte."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from midstream.kernels.sorted_row import SortedRow
from midstream.middleware.bytes.beam import BeamText
from midstream.middleware.bytes.cover import CoverText
from midstream.middleware.bytes.elements import log_cover_mass, log_going_mass
from midstream.middleware.bytes.foresight import WINDOW
from midstream.middleware.bytes.law import Method, Target
from midstream.middleware.bytes.reading import Read, Task, Wanted

Float = npt.NDArray[np.float64]

_NUMBERS = 1 << 22  # logits of one forward


@dataclass(frozen=True, slots=True)
class TextReport:
    """What a model says of a text of n bytes. Logs are natural; "bits" are bits.

    log_masses: float64 [n + 1], log P(x_1 ... x_i and anything after), of what counts.
    log_going: float64 [n + 1], the part of it that goes on with another byte, or ends, in token
        strings that count: what the law of the next byte divides.
    log_p_bytes: the reading `stepwise`, float64 [n]: of each byte by the law of the next byte.
    log_pruned: log of a bound of what a beam left out of the last of `log_masses`.
    log_tokens: log P of the tokenizer's own encoding of the text, special tokens before it taken as
        given; None where it is not known (target "all"). tokens: how many these are.
    rows: how many tokens the model read.
    """

    text: bytes
    log_masses: Float
    log_going: Float
    log_p_bytes: Float
    log_pruned: float
    log_tokens: float | None
    tokens: int | None
    rows: int
    target: Target
    method: Method

    @property
    def log_p(self) -> float:
        """log P(x and anything after): under "canonical" a lower bound of that over all token
        strings.
        """
        return float(self.log_masses[-1])

    @property
    def log_p_prefixes(self) -> Float:
        """The reading `prefix`, float64 [n]: of each byte the log of what is left of the mass."""
        with np.errstate(invalid="ignore"):
            steps: Float = np.diff(self.log_masses)
        return np.where(np.isneginf(self.log_masses[1:]), -np.inf, steps)

    @property
    def bits_per_byte(self) -> float:
        """By the law of the next byte (reading `stepwise`)."""
        return _bits(float(self.log_p_bytes.sum()), len(self.text))

    @property
    def bits_per_byte_prefix(self) -> float:
        """By the mass of the text (reading `prefix`)."""
        return _bits(self.log_p - float(self.log_masses[0]), len(self.text))

    @property
    def bits_per_byte_tokens(self) -> float | None:
        """Of the tokenizer's own encoding, the token-level figure."""
        return None if self.log_tokens is None else _bits(self.log_tokens, len(self.text))


def score_canonical(text: CoverText, lead: bytes, written: bytes) -> Task[TextReport]:
    """Of a text under `canonical`: its heads are known before the model is asked, so that they are
    read together.

    text: empty. lead: what the tokenizer writes before a text.
    """
    for byte in lead + written:
        text.heads.push(byte)
    score = _HeadScores(text)
    nodes = score.nodes
    step = max(_NUMBERS // len(text.places.vocabulary), 16)
    for begin in range(0, len(nodes), step):
        score.take(nodes[begin : begin + step], (yield score.want(begin, step)))
    return score.sums.report(text, written, own=score.own(), rows=len(nodes))


def score_all(text: BeamText, lead: bytes, written: bytes) -> Task[TextReport]:
    """Of a text under `all`: byte by byte, since what is followed depends on the model."""
    yield from text.feed(lead, written)
    sums, first = _Sums(len(written)), text.branches.read_count
    sums.reached = np.full(len(written) + 1, -np.inf)
    for length in range(len(written) + 1):
        standing = text.standing()
        log_mass = log_cover_mass(standing, text.vocabulary)
        sums.add(length, log_mass, log_going_mass(standing, text.vocabulary))
        sums.reached[length] = text.log_reached
        if length < len(written):
            coming = written[length + 1 : length + 1 + WINDOW]
            yield from text.feed(written[length : length + 1], coming)
    rows = text.branches.read_count - first
    return sums.report(text, written, own=None, rows=rows)


class _Sums:
    """Masses of the beginnings of a text, added up head by head."""

    def __init__(self, length: int) -> None:
        self.masses = np.full(length + 1, -np.inf)
        self.going = np.full(length + 1, -np.inf)
        self.reached = self.masses  # a beam has another: what it had before it left some out

    def add(self, length: int, log_mass: float, log_going: float) -> None:
        """One head's part."""
        with np.errstate(invalid="ignore"):
            self.masses[length] = np.logaddexp(self.masses[length], log_mass)
            self.going[length] = np.logaddexp(self.going[length], log_going)

    def report(
        self,
        text: CoverText | BeamText,
        written: bytes,
        *,
        own: tuple[float, int] | None,
        rows: int,
    ) -> TextReport:
        """The report of the last bytes."""
        lead = self.masses.size - 1 - len(written)
        log_tokens, tokens = own if own is not None else (None, None)
        with np.errstate(invalid="ignore"):
            steps = self.reached[lead + 1 :] - self.going[lead:-1]
        steps[np.isneginf(self.reached[lead + 1 :])] = -np.inf
        return TextReport(
            written,
            self.masses[lead:],
            self.going[lead:],
            steps,
            text.log_pruned,
            log_tokens,
            tokens,
            rows,
            text.target,
            text.method,
        )


class _HeadScores:
    """All that the heads of a text are asked, one head's row at a time."""

    def __init__(self, text: CoverText) -> None:
        self._text = text
        self._heads = heads = text.heads
        self.sums = _Sums(len(heads.text))
        self._asked: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for length in range(len(heads.text) + 1):
            for head in heads.live_at(length):
                self._asked[head.node].append((length, head.trie))
        self._children: dict[int, list[int]] = defaultdict(list)
        for node in range(1, len(heads)):
            self._children[heads.parent[node]].append(node)
        self.nodes = [node for node in range(1, len(heads)) if node in self._asked]
        self._take(0, text.branches.rows[0])

    def want(self, begin: int, step: int) -> Wanted:
        """The next nodes to be read, of `nodes[begin:]`."""
        heads, known = self._heads, self._text.branches.node
        chunk = self.nodes[begin : begin + step]
        at = {node: -1 - i for i, node in enumerate(chunk)}
        above = [heads.parent[node] for node in chunk]
        parents = [at[parent] if parent in at else known[parent] for parent in above]
        later = {heads.parent[node] for node in self.nodes[begin:]}
        keep = [known[parent] for parent in later if parent in known]
        return Wanted(parents, [heads.token[node] for node in chunk], keep)

    def take(self, chunk: list[int], answer: Read) -> None:
        """What the model says of nodes, added up."""
        branches, heads = self._text.branches, self._heads
        for node, tree_node, logits in zip(chunk, answer.nodes, answer.logits, strict=True):
            branches.node[node] = tree_node
            mask = self._text.places.mask(heads.place[node])
            row = SortedRow(logits, self._text.vocabulary, mask, branches.inverse_temperature)
            self._take(node, row)

    def own(self) -> tuple[float, int] | None:
        """Of the tokenizer's own encoding log P and how many tokens it is; None for none."""
        heads, ends = self._heads, self._text.places.may_end
        own = [h.node for h in heads.live if h.trie == 0 and ends(heads.place[h.node])]
        if len(own) != 1:
            return None
        return self._text.branches.log_p[own[0]], len(heads.path(own[0]))

    def _take(self, node: int, row: SortedRow) -> None:
        heads, known, log_p = self._heads, self._text.vocabulary, self._text.branches.log_p
        for child in self._children[node]:
            log_p[child] = log_p[node] + row.log_p(heads.token[child])
        for length, trie in self._asked[node]:
            inside = log_p[node] + row.log_sum(int(known.ends[trie]), int(known.high[trie]))
            self.sums.add(length, inside if trie else log_p[node], inside)
            if not trie and self._text.places.may_end(heads.place[node]):
                self.sums.add(length, -math.inf, log_p[node] + row.log_end())


def _bits(log_p: float, count: int) -> float:
    return -log_p / (count * math.log(2.0)) if count else 0.0
