"""What texts want read of a model, merged into one forward for all texts of a batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.sorted_row import SortedRow, log_normalisers
from midstream.middleware.bytes.tree import Tree, grow
from midstream.middleware.host import Host, logits_on_host

Logits = npt.NDArray[Any]
Words = npt.NDArray[np.uint32]
Result = TypeVar("Result")

_ROWS = 64  # rows of a text that are kept in any case
_NUMBERS = 1 << 22  # logits of one forward: 16 MB in float32


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tokens to be read, each behind a node of the tree, or behind an earlier one of these.

    parents: a node of the tree, or -1 - i for the i-th of `tokens`.
    keep: the tree's nodes that may still be parents, of those read before; None for all.
    """

    parents: Sequence[int]
    tokens: Sequence[int]
    keep: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """The answer: the nodes that the tokens became, and what follows them."""

    nodes: Sequence[int]
    logits: Logits  # [n, V]


Task = Generator[Wanted, Read, Result]
"""Work on one text, which stops wherever it needs the model."""


class Reader:
    """A host's tree for the texts of one batch.

    prompts: the fixed ids before each text. first: the logits behind each prompt [R, V].
    forwards, rows: how often the model was asked, and for how many tokens, prompts left out.
    """

    def __init__(self, host: Host, prompts: Sequence[Sequence[int]]) -> None:
        self._tree: Tree
        self._tree, self.first = grow(host, prompts)
        self._size = len(prompts)
        self._held = [[i] for i in range(len(prompts))]  # nodes that may still be parents
        self.forwards = 0
        self.rows = 0

    def run(self, tasks: Sequence[Task[Result]]) -> list[Result]:
        """The results of tasks that go on side by side, one forward for each round of them.

        tasks: task i is of text i.
        """
        results: dict[int, Result] = {}
        wanted: dict[int, Wanted] = {}
        for i, task in enumerate(tasks):
            _go_on(i, task, None, wanted, results)
        while wanted:
            answers = self._read(wanted)
            wanted = {}
            for i, answer in answers.items():
                _go_on(i, tasks[i], answer, wanted, results)
        return [results[i] for i in range(len(tasks))]

    def _read(self, wanted: dict[int, Wanted]) -> dict[int, Read]:
        parents: list[int] = []
        tokens: list[int] = []
        spans: dict[int, slice] = {}
        for i, each in wanted.items():
            first = self._size + len(tokens)
            parents.extend(p if p >= 0 else first - 1 - p for p in each.parents)
            spans[i] = slice(len(tokens), len(tokens) + len(each.tokens))
            tokens.extend(each.tokens)
            if each.keep is not None:
                self._held[i] = sorted({*each.keep, *(p for p in each.parents if p >= 0)})
        if any(each.keep is not None for each in wanted.values()):
            self._tree.keep(list(chain.from_iterable(self._held)))
        logits = logits_on_host(self._tree.extend(parents, tokens))
        nodes = range(self._size, self._size + len(tokens))
        self._size += len(tokens)
        self.forwards += 1
        self.rows += len(tokens)
        for i, span in spans.items():
            self._held[i].extend(nodes[span])
        return {i: Read(nodes[span], logits[span]) for i, span in spans.items()}


def _go_on(
    i: int,
    task: Task[Result],
    answer: Read | None,
    wanted: dict[int, Wanted],
    results: dict[int, Result],
) -> None:
    """Run a task to its next want, or to its end."""
    try:
        wanted[i] = next(task) if answer is None else task.send(answer)
    except StopIteration as end:
        results[i] = end.value


class Branches:
    """What was read of one text's token strings, by the node numbers of who makes them.

    parent, token: of each node, kept by the owner; parents have lower numbers, the root is node 0.
    root: the tree's node for it. logits: what follows it.
    log_p: log probability of the tokens of each node that is known. rows: of the nodes whose law
        may be asked for. ahead: logits, and the log of their normaliser, of nodes that were read
        before they were asked for. read_count: how many tokens were read.
    longest: how many tokens the model takes behind the root; None for any number.
    chunk: how many nodes one forward reads at most.
    """

    def __init__(
        self,
        parent: list[int],
        token: list[int],
        *,
        root: int,
        logits: Logits,
        vocabulary: ByteSortedVocabulary,
        mask: Words | None,
        inverse_temperature: float,
        longest: int | None = None,
    ) -> None:
        self._longest = longest
        self._depths = {0: 0}
        self._parent = parent
        self._token = token
        self._vocabulary = vocabulary
        self.inverse_temperature = inverse_temperature
        self.node: dict[int, int] = {0: root}
        self.log_p: dict[int, float] = {0: 0.0}
        self.rows: dict[int, SortedRow] = {}
        self.ahead: dict[int, tuple[Logits, float]] = {}
        self.read_count = 0
        self.chunk = max(_NUMBERS // max(len(vocabulary), 1), 16)
        self._most_rows = _ROWS
        self._keep: list[int] | None = None  # for the next `Wanted`
        self.set_row(0, logits, mask)

    def set_row(self, path: int, logits: Logits, mask: Words | None) -> None:
        """Note the law that follows a node."""
        self.rows[path] = SortedRow(logits, self._vocabulary, mask, self.inverse_temperature)

    def has(self, path: int) -> bool:
        """Whether the law that follows a node was read."""
        return path in self.rows or path in self.ahead

    def log_p_of(self, path: int, token: int) -> float:
        """log P of a token behind a node whose law was read."""
        row = self.rows.get(path)
        if row is not None:
            return row.log_p(token)
        logits, log_z = self.ahead[path]
        return float(logits[token]) * self.inverse_temperature - log_z

    def weigh(self, path: int) -> float:
        """log P of the tokens of a node, -inf where it is not known."""
        if path not in self.log_p:
            parent = self._parent[path]
            if not self.has(parent):
                return -math.inf
            self.log_p[path] = self.log_p[parent] + self.log_p_of(parent, self._token[path])
        return self.log_p[path]

    def read(
        self, paths: Iterable[int], masks: dict[int, Words] | None, ahead: Iterable[int] = ()
    ) -> Task[None]:
        """Read what is missing for the rows of some nodes, and for the probability of each.

        masks: of each of these nodes; None where all tokens count.
        ahead: nodes to be read in the same forward, if there is one and the model takes them.
        """
        asked = [path for path in paths if path not in self.rows]
        for path in [path for path in asked if path in self.ahead]:
            self.set_row(path, self.ahead.pop(path)[0], None if masks is None else masks[path])
        asked = [path for path in asked if path not in self.rows]
        if not asked:
            return
        ahead = [path for path in ahead if not self.has(path) and self._fits(path)]
        missing = self._missing([*asked, *ahead])
        waiting: dict[int, list[int]] = defaultdict(list)
        for path in missing:
            if path not in self.log_p:
                waiting[self._parent[path]].append(path)
        for parent in [p for p in waiting if self.has(p)]:
            for path in waiting.pop(parent):
                self.log_p[path] = self.log_p[parent] + self.log_p_of(parent, self._token[path])
        rows = set(asked)
        early = set(ahead) - rows
        for begin in range(0, len(missing), self.chunk):
            chunk = missing[begin : begin + self.chunk]
            answer = yield self._want(chunk)
            self.read_count += len(chunk)
            self._receive(chunk, answer, waiting, early)
            for path, logits in zip(chunk, answer.logits, strict=True):
                if path in rows:
                    self.set_row(path, logits, None if masks is None else masks[path])

    def tidy(self, recent: Callable[[], set[int]]) -> None:
        """Forget, now and then, the rows of all but some nodes, and in the tree all but these and
        their ancestors. The root's row is kept, which nothing reads again; another node that was
        forgotten is read again where it is asked for.
        """
        if len(self.rows) + len(self.ahead) <= self._most_rows:
            return
        tips = recent()
        self.rows = {path: row for path, row in self.rows.items() if path in tips or not path}
        self.ahead = {path: each for path, each in self.ahead.items() if path in tips}
        self._most_rows = 2 * (len(self.rows) + len(self.ahead)) + _ROWS
        kept: set[int] = {0}
        for path in tips & self.node.keys():
            while path not in kept:
                kept.add(path)
                path = self._parent[path]
        self.node = {path: node for path, node in self.node.items() if path in kept}
        self._keep = list(self.node.values())

    def cut(self, count: int) -> None:
        """Nodes from `count` on are no more; their numbers may come again."""
        for known in (self.node, self.log_p, self.rows, self.ahead, self._depths):
            for path in [path for path in known if path >= count]:
                del known[path]

    def _missing(self, asked: Iterable[int]) -> list[int]:
        found: set[int] = set()
        for path in asked:
            found.add(path)
            while self._needs_parent(path) and self._parent[path] not in found:
                path = self._parent[path]
                found.add(path)
        return sorted(found)

    def _needs_parent(self, path: int) -> bool:
        """Whether a node that is to be read needs its parent to be read too."""
        parent = self._parent[path]
        if parent < 0:
            return False
        return parent not in self.node or (path not in self.log_p and not self.has(parent))

    def _fits(self, path: int) -> bool:
        """Whether the model takes so many tokens."""
        if self._longest is None:
            return True
        above: list[int] = []
        while path not in self._depths:
            above.append(path)
            path = self._parent[path]
        depth = self._depths[path]
        for path in reversed(above):
            depth += 1
            self._depths[path] = depth
        return depth <= self._longest

    def _want(self, chunk: list[int]) -> Wanted:
        at = {path: -1 - i for i, path in enumerate(chunk)}
        above = [self._parent[path] for path in chunk]
        parents = [at[parent] if parent in at else self.node[parent] for parent in above]
        keep, self._keep = self._keep, None
        return Wanted(parents, [self._token[path] for path in chunk], keep)

    def _receive(
        self, chunk: list[int], answer: Read, waiting: dict[int, list[int]], early: set[int]
    ) -> None:
        log_z: list[float] | None = None
        for i, path in enumerate(chunk):
            self.node[path] = answer.nodes[i]
            if path not in early and path not in waiting:
                continue
            if log_z is None:
                log_z = log_normalisers(answer.logits, self.inverse_temperature).tolist()
            if path in early:
                self.ahead[path] = answer.logits[i], log_z[i]
            for child in waiting.pop(path, ()):
                logit = float(answer.logits[i, self._token[child]])
                self.log_p[child] = self.log_p[path] + logit * self.inverse_temperature - log_z[i]
