"""The sequences of one call of `generate()`, each drawing its own tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from midstream.kernels.masked_sampling import NOT_FINITE, OK
from midstream.middleware.draw import Draw, Status, no_draw
from midstream.middleware.finish import Finish, why_dead
from midstream.middleware.host import logits_on_host
from midstream.middleware.law import Law
from midstream.middleware.matcher import Matcher, fault, next_state
from midstream.middleware.random import Stream, sequence_of
from midstream.middleware.sampling import Auto, Mask, Sampler

if TYPE_CHECKING:
    from torch import Tensor, device

    from midstream.logits_processors.device_draws import DeviceDraws, Drawn


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
        self.token = self.end

    @property
    def end(self) -> int:
        """The token of a row that has ended."""
        return self.matcher.vocabulary.eos_ids[0]

    def take(self, draw: Draw) -> None:
        """Go on with a draw. A row that ends by it holds end of sequence and keeps its weight."""
        self.log_weight += draw.log_weight
        self.status, self.reason = draw.status, draw.reason
        self.checks += draw.checks
        if draw.status == "running":
            self._advance(draw.token)
        self.token = draw.token if self.status == "running" else self.end

    def _advance(self, token: int) -> None:
        self.state, reason = next_state(self.matcher, self.state, token)
        if self.state is None:
            self.status, self.reason, self.log_weight = "dead", reason, -math.inf


class SampledRows:
    """All rows of a call without beams.

    prompts: the ids of each row's prompt, without padding. A row's random numbers depend on the
        seed, its prompt, how many rows before it have the same prompt, and the position: not on its
        place or its company.
    device: where the kernels draw for the rows that the sampler `mask` serves, whose results then
        are `rows` only after `settle`. None: all rows are drawn on the host.
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
        device: device | None = None,
    ) -> None:
        self._sampler = sampler
        self._law = law
        self._seed = seed
        self._max_new_tokens = max_new_tokens
        self._at_limit = False
        occurrences: Counter[tuple[int, ...]] = Counter()
        self.rows: list[Row] = []
        for matcher, prompt in zip(matchers, prompts, strict=True):
            ids = tuple(prompt)
            self.rows.append(Row(matcher, sequence_of(ids, occurrences[ids])))
            occurrences[ids] += 1
        self._masked = [_by_mask(sampler, matcher) for matcher in matchers]
        self._draws: DeviceDraws | None = None
        if device is not None and any(self._masked):
            from midstream.logits_processors.device_draws import DeviceDraws

            sequences = [row.sequence for row in self.rows]
            eos_ids = matchers[0].vocabulary.eos_ids
            self._draws = DeviceDraws(sequences, law=law, seed=seed, eos_ids=eos_ids, device=device)

    def goes_on(self, input_ids: Tensor, last_ids: Tensor) -> bool:
        """Whether ids [B, n + 1] continue the [B, n] of the last step with what the rows drew.

        What comes after an end is padding. Settles the last step in the same copy to the host.
        """
        import torch

        same = (input_ids[:, :-1] == last_ids).all(dim=1)
        kept, last = self._collect(torch.stack((same.to(input_ids.dtype), input_ids[:, -1])))
        pairs = zip(self.rows, last, strict=True)
        return all(kept) and all(
            row.status not in ("running", "length") or row.token == token for row, token in pairs
        )

    def settle(self) -> None:
        """Bring what the last step drew on a device to the host, where it is not there yet."""
        self._collect(None)

    def step(self, scores: Tensor, position: int) -> Tensor:
        """The token of each row, int64 [B] on the device of the scores [B, V]."""
        import torch

        self._at_limit = position + 1 == self._max_new_tokens
        there = self._draws is not None
        live = [i for i, row in enumerate(self.rows) if row.status == "running"]
        self._draw_here(scores, [i for i in live if not (there and self._masked[i])], position)
        masked = [i for i in live if there and self._masked[i]]
        if self._draws is not None and masked:
            return self._draw_there(self._draws, scores, masked, position)
        self._close()
        return scores.new_tensor([row.token for row in self.rows], dtype=torch.int64)

    def _draw_here(self, scores: Tensor, rows: Sequence[int], position: int) -> None:
        """Draw for some rows on the host."""
        import torch

        if not rows:
            return
        whole = self._draws is None
        logits = logits_on_host(scores if whole else torch.stack([scores[i] for i in rows]))
        for k, i in enumerate(rows):
            row, one = self.rows[i], logits[i if whole else k]
            stream = Stream(self._seed, row.sequence, position)
            row.take(self._sampler.draw(one, row.matcher, row.state, stream, law=self._law))

    def _draw_there(
        self, draws: DeviceDraws, scores: Tensor, rows: Sequence[int], position: int
    ) -> Tensor:
        """Draw for some rows on the device. The host gives their masks and waits for nothing."""
        upload = draws.upload(scores.shape[1])
        drawn, wanted = [], set(rows)
        for i, row in enumerate(self.rows):
            if i not in wanted:
                upload.masks[i] = 0
                continue
            try:
                row.matcher.mask(row.state, upload.masks[i])
                drawn.append(i)
            except Exception as error:  # one request's constraint must not stop the loop
                upload.masks[i] = 0
                row.take(no_draw("dead", "mask", fault(error)))
        upload.tokens[:] = [row.token for row in self.rows]
        upload.tokens[drawn] = [self.rows[i].end for i in drawn]
        return draws.draw(scores, upload, drawn, position)

    def _collect(self, told: Tensor | None) -> list[list[int]]:
        """`told` [n, B] as numbers, and the rows brought up to what was drawn for them."""
        numbers: list[list[int]] = []
        if self._draws is None:
            numbers = [] if told is None else told.tolist()
            return numbers
        drawn, found = self._draws.collect(told)
        if drawn is not None:
            for i in drawn.rows:
                self.rows[i].take(self._draw_of(i, drawn))
            self._close()
        numbers = found.tolist()
        return numbers

    def _draw_of(self, i: int, drawn: Drawn) -> Draw:
        """The draw of one row, as the sampler `mask` tells it."""
        row = self.rows[i]
        if drawn.status[i] == NOT_FINITE:
            return no_draw("dead", "mask", "the logits hold NaN or +inf")
        if drawn.status[i] != OK:
            reason = why_dead(row.matcher, row.state, drawn.masks[i], self._law)
            return no_draw("dead", "mask", reason)
        finish = Finish("mask", row.matcher.vocabulary.eos_ids, None)
        return finish(int(drawn.tokens[i]), float(drawn.log_weights[i]), 0)

    def _close(self) -> None:
        """After the last step that the limit leaves, nothing is running."""
        for row in self.rows:
            if self._at_limit and row.status == "running":
                row.status = "length"


def _by_mask(sampler: Sampler, matcher: Matcher) -> bool:
    chosen = sampler.choice(matcher)[0] if isinstance(sampler, Auto) else sampler
    return type(chosen) is Mask
