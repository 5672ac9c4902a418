"""The law of the next byte, and the sum over heads that makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from midstream.kernels.next_byte import ENDS
from midstream.kernels.sorted_row import SortedRow, log_sum

Float = npt.NDArray[np.float64]

Target = Literal["canonical", "all"]
Method = Literal["cover", "beam"]


@dataclass(frozen=True, slots=True)
class Standing:
    """A head with what the model says of it.

    path: the node in its text's tree. written: how many bytes of the text stand behind it, and
    trie: their node of the vocabulary, 0 where the head ends with the text.
    log_p: log P of its tokens. may_end: whether the text may end behind it.
    """

    path: int
    written: int
    trie: int
    log_p: float
    row: SortedRow
    may_end: bool


@dataclass(frozen=True, slots=True)
class ByteLaw:
    """What follows a text x, byte by byte. Logs are natural.

    log_p: float64 [257]: the next byte, or in bin 256 the end, given that one of these comes. Sums
        to 1; all -inf where nothing covers x. Under "canonical" this is the reading `stepwise`; the
        reading `prefix` is `log_p_prefix`.
    log_mass: log P(x ...), the mass of all the token strings counted that begin with x. Under
        "canonical" that is log W(x), a lower bound of log P over all token strings; under "all"
        what the beam has kept of it.
    log_pruned: log of a bound of what the beam has left out: P(x ...) is from e^log_mass to
        e^log_mass + e^log_pruned. -inf for the whole cover.
    log_going: log of the share of e^log_mass that goes on with a byte, or ends, in token strings
        that count: what `log_p` divides. The rest goes to other special tokens (log_special is the
        log of their share) and, under "canonical", to token strings that do not count.
    target, method: what was summed, and how.
    status: "running"; "dead" where nothing covers x, or a row of the model is not finite.
    """

    log_p: Float
    log_mass: float
    log_pruned: float
    log_going: float
    log_special: float
    target: Target
    method: Method
    status: Literal["running", "dead"]

    @property
    def p(self) -> Float:
        """exp(log_p): float64 [257]."""
        law: Float = np.exp(self.log_p)
        return law

    @property
    def log_p_prefix(self) -> Float:
        """log P(x c ...) - log P(x ...), [257]: what does not go on, or not in what counts, is
        missing in the sum of these.
        """
        return self.log_p + self.log_going if self.status == "running" else self.log_p

    def bounds(self) -> tuple[Float, Float]:
        """Of p over the whole target: the least and the most that it can be, [257] each.

        With A the mass kept that goes on, A_c what of it goes on with c, and Z what was left out,
        A_c / (A + Z) <= P(c) <= (A_c + Z) / (A + Z).
        """
        if self.status == "dead":
            return self.p, np.full(ENDS + 1, float(self.log_pruned > -math.inf))
        pruned = math.exp(min(self.log_pruned - self.log_mass - self.log_going, 700.0))
        return self.p / (1.0 + pruned), (self.p + pruned) / (1.0 + pruned)

    def tempered(self, temperature: float) -> ByteLaw:
        """The law with its bytes at a temperature: p^(1 / temperature), normalised. Zeros stay."""
        if temperature == 1.0 or self.status == "dead":
            return self
        scaled = self.log_p / temperature
        log_p = scaled - np.logaddexp.reduce(scaled)
        values = {name: getattr(self, name) for name in ByteLaw.__slots__}
        return ByteLaw(**{**values, "log_p": log_p})


def byte_law(
    standing: Sequence[Standing],
    *,
    log_mass: float,
    log_pruned: float,
    target: Target,
    method: Method,
) -> ByteLaw:
    """The law of what follows a text, from all its heads.

    log_mass: of the text, which the heads may divide only in part (`ByteLaw.log_going`).
    """
    logs = np.full((max(len(standing), 1), ENDS + 1), -np.inf)
    log_special = -math.inf
    for i, head in enumerate(standing):
        head.row.log_bytes(head.trie, logs[i])
        if head.trie == 0:
            if head.may_end:
                logs[i, ENDS] = head.row.log_end()
            special = head.log_p + head.row.log_special()
            log_special = float(np.logaddexp(log_special, special))
        logs[i] += head.log_p
    with np.errstate(all="ignore"):
        top = np.maximum.reduce(logs, axis=0)
        top[np.isneginf(top)] = 0.0
        sums = np.log(np.add.reduce(np.exp(logs - top), axis=0)) + top
        total = log_sum(sums)
        sums -= total
    if not math.isfinite(total):
        return _nothing(log_mass, log_pruned, target, method)
    return ByteLaw(
        sums,
        log_mass,
        log_pruned,
        total - log_mass,
        log_special - log_mass,
        target,
        method,
        "running",
    )


def _nothing(log_mass: float, log_pruned: float, target: Target, method: Method) -> ByteLaw:
    log_p = np.full(ENDS + 1, -np.inf)
    mass = log_mass if math.isfinite(log_mass) else -math.inf
    return ByteLaw(log_p, mass, log_pruned, -math.inf, -math.inf, target, method, "dead")
