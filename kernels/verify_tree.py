"""Verification of a tree of drafted tokens by recursive rejection or by walking the target.

Row 0 of a request's target logits is the model's at the root, row n + 1 the one after node n. The
laws p and q of a row are those of `verify_chain`, q that of the row's children.

"rrs" (Jeon et al., arXiv 2402.14160): the children y_1, y_2, ... of a node were drawn one after
another, each from what its earlier siblings left of q, in order of their index. Let R = p and
D = q. In this order a child is kept, and the walk goes on from it, with probability
min(1, R(y) / D(y)); else R becomes norm([R - D]+) and D loses y and is normalised again. Where no
child is kept the next token is drawn from R. Given that y_1 ... y_{j-1} were not kept, y_j has the
law D of step j, so that step j turns "the rest outputs R of step j + 1" into "outputs R of step j";
at j = 1 that is p. "rrs_with_replacement": the children were drawn independently, and D stays q.

After j rejected children R is norm([p - C q]+) with one number C: as [[x - a]+ - b]+ = [x - a - b]+
for b >= 0, each step adds A / L to C, where A is the mass of [p - C q]+ before it and L what the
earlier siblings left of q; and at a rejected child [p - C q]+ is 0, as R is.

"target_walk": a token of p is drawn at the root; where a child carries it the walk goes on from
there, else it is the last. Only tokens of p come out, whatever the tree.

Under the conditions of `verify_chain` the committed tokens have the joint law prod p. A drafted
node stays in the tree whatever its token is, and its siblings in the order in which they were
drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from midstream.kernels.acceptance import excess, mass_without, sibling_acceptance
from midstream.kernels.backend import Backend, choose, like
from midstream.kernels.masked_sampling import OK
from midstream.kernels.verify_inputs import (
    Inputs,
    check_inputs,
    check_parents,
    earlier_parents,
    numpy_inputs,
)
from midstream.kernels.verify_rows import (
    Chance,
    DraftRow,
    Float,
    TargetRow,
    Uniforms,
    point_mass,
)

Method = Literal["rrs", "rrs_with_replacement", "target_walk"]
METHODS = ("rrs", "rrs_with_replacement", "target_walk")

NOTHING_LEFT = 1e-290
"""Where earlier siblings left no more than that of q, the others are passed over: 1 / L would end
beyond float64. That is known from the earlier siblings alone, so that the law stays as it is.
"""


@dataclass(frozen=True, slots=True)
class TreeVerdict:
    """What became of each request's tree. Log-domain values are float64, in nats; arrays are
    of the kind of the logits.

    The tokens to commit are those of the nodes in `path` and then `token`; their log weight is the
    sum of log_weight[b, 0] and log_weight[b, n + 1] for each node n of the path.
    """

    path: Any  # int64 [B, N], the nodes kept, from the root on; -1 after the last
    accepted: Any  # int64 [B], how many
    token: Any  # int64 [B], the token after them; -1 unless status is OK
    log_p: Any  # [B], log p(token) under its whole row, before the mask; -inf without a token
    accept_prob: Any  # float64 [B, N], what each test keeps with; NaN of nodes not tested
    log_weight: Any  # [B, N + 1], log Z_allowed - log Z_all of the rows passed; NaN elsewhere
    status: Any  # int8 [B], of the row that `token` is of


def verify_tree(
    target_logits: Any,  # [B, N + 1, V]
    tokens: Any,  # [B, N]
    parents: Any,  # [B, N]
    draft_logits: Any,  # [B, N + 1, V] | None
    noise: Any,  # [B, N + 1, 2] | Keys
    *,
    mask: Any = None,  # [B, N + 1, W]
    temperature: Any = 1.0,  # scalar or [B]
    draft_temperature: Any = 1.0,  # scalar or [B]
    method: Method = "rrs",
    backend: Backend = "auto",
) -> TreeVerdict:
    """Keep one path from the root and draw one more token, so that they follow the target law.

    See the head of the module for the law and what it asks of the caller. tokens: below 0 for no
    node. parents: -1 for the root, else an earlier node. draft_logits None, or a draft_temperature
    of 0: each node is a function of the text above and of its earlier siblings; in rrs it then has
    a law of its own, all on its token. A target walk takes no draft_logits. Children of a draft row
    with a NaN, a +inf or no mass are passed over. noise: pair 0 draws the last token and the first
    number of pair 1 + n tests node n; in a target walk pair j draws after j nodes kept. Dead rows,
    masks, types and batches are as in `verify_chain`. On a device the parents are not checked.
    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}; accepted: {', '.join(METHODS)}")
    if method == "target_walk" and draft_logits is not None:
        raise ValueError("draft_logits: got an array; accepted: None with method target_walk")
    arguments = target_logits, tokens, draft_logits, noise, mask
    check_inputs(*arguments, last_is_drafted=True)
    check_parents(parents, tokens)
    if choose(target_logits, backend) == "triton":
        from midstream.kernels.triton.verify_tree import verify_tree as on_device

        return on_device(*arguments, parents, temperature, draft_temperature, method)
    inputs = numpy_inputs(*arguments, temperature, draft_temperature)
    return _in_numpy(inputs, earlier_parents(parents, tokens), method, target_logits)


def _in_numpy(
    inputs: Inputs, parents: npt.NDArray[np.int64], method: Method, original: Any
) -> TreeVerdict:
    requests, rows = inputs.target.shape[:2]
    path = np.full((requests, rows - 1), -1, np.int64)
    token = np.full(requests, -1, np.int64)
    log_p = np.full(requests, -np.inf)
    accept_prob = np.full((requests, rows - 1), np.nan)
    log_weight = np.full((requests, rows), np.nan)
    status = np.empty(requests, np.int8)
    for b in range(requests):
        choice = decide_tree(
            partial(inputs.target_row, b),
            partial(inputs.draft_row, b),
            inputs.tokens[b].tolist(),
            parents[b].tolist(),
            method,
            Uniforms(inputs.pairs[b]),
        )
        path[b, : len(choice.path)] = choice.path
        token[b] = choice.token
        accept_prob[b, list(choice.tests)] = list(choice.tests.values())
        passed = [0, *(node + 1 for node in choice.path)]
        log_weight[b, passed] = [row.log_weight for row in choice.rows]
        last = choice.rows[-1]
        status[b] = last.status
        if choice.token >= 0:
            log_p[b] = last.log_p(choice.token)
    results = path, (path >= 0).sum(axis=1), token, log_p, accept_prob, log_weight, status
    return TreeVerdict(*(like(original, each) for each in results))


@dataclass(frozen=True, slots=True)
class TreeChoice:
    """The decision on one tree."""

    path: list[int]  # nodes kept, from the root on
    rows: list[TargetRow]  # the root's and one for each node kept
    tests: dict[int, float]  # node: with which probability it is kept
    token: int = -1  # where the last row is dead


class Rest(Protocol):
    """What a node of the tree has still to output."""

    def acceptance(self, token: int) -> float | None:
        """With which probability the next child is kept; None where none can have been drawn."""

    def reject(self, token: int) -> None:
        """Go on after a child that was tested and not kept."""

    def draw(self, chance: Chance) -> int:
        """The token where no child is kept."""


class SampledRest:
    """The rest where children were drawn from q: R = [p - C q]+ / A, and D = q / L without the
    earlier siblings.
    """

    __slots__ = ("_draft", "_gone", "_left", "_mass", "_p", "_q", "_replace", "_row", "_taken")

    _p: Float  # read at the first rejection, as is _q
    _q: Float

    def __init__(self, row: TargetRow, draft: DraftRow, replace: bool) -> None:
        self._row = row
        self._draft = draft
        self._replace = replace
        self._taken = 0.0  # C
        self._mass = 1.0  # A
        self._left = 1.0 if draft.usable else 0.0  # L
        self._gone: list[int] = []

    def acceptance(self, token: int) -> float | None:
        """See `Rest.acceptance`."""
        if self._left == 0.0:
            return None
        log_p, log_q = self._row.log_law(token), self._draft.log_law(token)
        return sibling_acceptance(log_p, log_q, self._taken, self._mass, self._left)

    def reject(self, token: int) -> None:
        """See `Rest.reject`."""
        if not self._gone:
            self._p = self._row.law()
            self._q = self._draft.law(token, self._p.size)
        taken = self._taken + self._mass / self._left
        mass = float(excess(self._p, taken * self._q).sum())
        if mass == 0.0:
            # R = D up to rounding, whose rejection has probability 0: R is as good as what follows.
            self._left = 0.0
            return
        self._taken, self._mass = taken, mass
        self._gone.append(token)
        if not self._replace:
            left = mass_without(self._q, self._gone)
            self._left = left if left > NOTHING_LEFT else 0.0

    def draw(self, chance: Chance) -> int:
        """See `Rest.draw`."""
        if not self._gone:
            return chance.draw(self._row, 0)
        return chance.choose(excess(self._p, self._taken * self._q))


class PointRest:
    """The rest where children were given: each is drawn from a law of its own, all on its token, so
    that R is p without the earlier siblings.
    """

    __slots__ = ("_closed", "_gone", "_law", "_row")

    def __init__(self, row: TargetRow) -> None:
        self._row = row
        self._law: Float | None = None  # R, not normalised; None for p
        self._gone: list[int] = []
        self._closed = False

    def acceptance(self, token: int) -> float | None:
        """See `Rest.acceptance`."""
        if self._closed:
            return None
        if token in self._gone:
            return 0.0
        share = math.exp(self._row.log_law(token))
        return share if self._law is None else min(share / float(self._law.sum()), 1.0)

    def reject(self, token: int) -> None:
        """See `Rest.reject`."""
        law = self._row.law() if self._law is None else self._law
        rest = excess(law, point_mass(token, law.size))
        self._gone.append(token)
        if rest.any():
            self._law = rest
        else:  # as in `SampledRest`
            self._closed = True

    def draw(self, chance: Chance) -> int:
        """See `Rest.draw`."""
        return chance.draw(self._row, 0) if self._law is None else chance.choose(self._law)


def decide_tree(
    target: Callable[[int], TargetRow],  # of row 0, or n + 1 for node n
    draft: Callable[[int], DraftRow],
    tokens: Sequence[int],  # N
    parents: Sequence[int],  # N
    method: Method,
    chance: Chance,
) -> TreeChoice:
    """Which nodes are kept, and the token after them. Rows are read when the walk comes by."""
    choice = TreeChoice([], [target(0)], {})
    if method == "target_walk":
        return replace(choice, token=_walk(choice, target, tokens, parents, chance))
    with_replacement = method == "rrs_with_replacement"
    rest: Rest | None = None
    at = -1
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        # A child has a larger index than its parent: one pass sees the whole path.
        if parent != at or token < 0 or choice.rows[-1].status != OK:
            continue
        if rest is None:
            rest = _rest(choice.rows[-1], draft(at + 1), with_replacement)
        probability = rest.acceptance(token)
        if probability is None:
            continue
        choice.tests[node] = probability
        if chance.keeps(node, probability):
            at, rest = node, None
            choice.path.append(node)
            choice.rows.append(target(node + 1))
        else:
            rest.reject(token)
    last = choice.rows[-1]
    if last.status != OK:
        return choice
    return replace(choice, token=chance.draw(last, 0) if rest is None else rest.draw(chance))


def _rest(row: TargetRow, draft: DraftRow, with_replacement: bool) -> Rest:
    return PointRest(row) if draft.is_point else SampledRest(row, draft, with_replacement)


def _walk(
    choice: TreeChoice,
    target: Callable[[int], TargetRow],
    tokens: Sequence[int],
    parents: Sequence[int],
    chance: Chance,
) -> int:
    """Draw from the target at each node and go down where a child carries the token."""
    at, drawn = -1, _drawn(choice, chance)
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        if parent == at and token == drawn and token >= 0:
            at = node
            choice.path.append(node)
            choice.rows.append(target(node + 1))
            drawn = _drawn(choice, chance)
    return drawn


def _drawn(choice: TreeChoice, chance: Chance) -> int:
    row = choice.rows[-1]
    return chance.draw(row, len(choice.path)) if row.status == OK else -1
