"""The sequences of one call of `generate()`, each drawing its own tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from midstream.middleware.draw import Status
from midstream.middleware.law import Law
from midstream.middleware.matcher import Matcher, next_state
from midstream.middleware.random import Stream, sequence_of
from midstream.middleware.sampling import Logits, Sampler


class Row:
    """One sequence: where it stands in its matcher, what it weighs, and the token it drew last."""

    __slots__ = (
        "checks",
        "log_weight",
        "matcher",
        "reason",
        "sequence",
        "state",
        "status",
        "token",
    )

    def __init__(self, matcher: Matcher, sequence: int) -> None:
        self.matcher = matcher
        self.sequence = sequence
        self.state = matcher.start()
        self.status: Status = "running"
        self.reason = ""
        self.log_weight = 0.0
        self.checks = 0
        self.token = self._end()

    def _end(self) -> int:
        return self.matcher.vocabulary.eos_ids[0]

    def draw(self, logits: Logits, sampler: Sampler, law: Law, stream: Stream) -> None:
        """Draw `token`. A row that has ended holds end of sequence and keeps its weight."""
        if self.status != "running":
            return
        draw = sampler.draw(logits, self.matcher, self.state, stream, law=law)
        self.log_weight += draw.log_weight
        self.status, self.reason = draw.status, draw.reason
        self.checks += draw.checks
        if draw.status == "running":
            self._advance(draw.token)
        self.token = draw.token if self.status == "running" else self._end()

    def _advance(self, token: int) -> None:
        self.state, reason = next_state(self.matcher, self.state, token)
        if self.state is None:
            self.status, self.reason, self.log_weight = "dead", reason, -math.inf


class SampledRows:
    """All rows of a call without beams.

    prompts: the ids of each row's prompt, without padding. A row's random numbers depend on the
        seed, its prompt, how
    many rows before it have the same prompt, and the position: not on its place or its company.
    """

    def __init__(
        self,
        matchers: Sequence[Matcher],
        prompts: Sequence[Sequence[int]],
        *,
        sampler: Sampler,
        law: Law,
        seed: int,
        max_new_tokens: int | None,
    ) -> None:
        self._sampler = sampler
        self._law = law
        self._seed = seed
        self._max_new_tokens = max_new_tokens
        occurrences: Counter[tuple[int, ...]] = Counter()
        self.rows: list[Row] = []
        for matcher, prompt in zip(matchers, prompts, strict=True):
            ids = tuple(prompt)
            self.rows.append(Row(matcher, sequence_of(ids, occurrences[ids])))
            occurrences[ids] += 1

    def agrees(self, last_ids: Sequence[int]) -> bool:
        """Whether the rows went on with what they drew; what comes after an end is padding."""
        pairs = zip(self.rows, last_ids, strict=True)
        return all(
            row.status not in ("running", "length") or row.token == last for row, last in pairs
        )

    def step(self, logits: Logits, position: int) -> list[int]:
        """Draw each row's token, [B], from logits [B, V]."""
        for i, row in enumerate(self.rows):
            stream = Stream(self._seed, row.sequence, position)
            row.draw(logits[i], self._sampler, self._law, stream)
        tokens = [row.token for row in self.rows]
        if position + 1 == self._max_new_tokens:
            for row in self.rows:
                row.status = "length" if row.status == "running" else row.status
        return tokens
