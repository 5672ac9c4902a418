"""Independent sequences of one stream: logits in; tokens, masks or logits out. Knows no wire.

A sequence's numbers depend on the seed, its own number and its position alone: equal logits give
the tokens and weights that `sampler.draw` gives in process, whoever shares the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from midstream.adapters.sidecar.offers import Offer, offers
from midstream.adapters.sidecar.protocol import Answer
from midstream.adapters.sidecar.sequences import Answered, Member, RowOf, answers
from midstream.kernels.bitmask import Mask, mask_words
from midstream.middleware.budget import within_budget
from midstream.middleware.draw import NO_TOKEN, Draw
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.law import Law
from midstream.middleware.matcher import Matcher, next_state
from midstream.middleware.random import Stream, StreamSource
from midstream.middleware.sampling import AWRS, Sampler, prepare_rows

Logits: TypeAlias = npt.NDArray[Any]

_SEQUENCE_NUMBERS = "an integer from 0 to 2^32 - 1"


class SequenceGroup:
    """The sequences of a stream that are not particles: each by itself, many in a step.

    answer: "token" draws here; "mask" and "logits" let the engine draw, whose token comes with the
        sequence's next row. most: sequences that may be open at once.
    Every sequence has max_new_tokens; where the matcher knows `tokens_to_finish`, none starts what
    it cannot finish. Raises StrategyError and ConstraintError for what can never be answered.
    """

    def __init__(
        self,
        matcher: Matcher,
        *,
        answer: Answer,
        sampler: Sampler,
        law: Law,
        seed: int,
        max_new_tokens: int,
        row_size: int,
        most: int,
    ) -> None:
        if answer != "token" and not matcher.has_mask:
            accepted = "ANSWER_TOKEN: this constraint has no mask, it is checked token by token"
            raise StrategyError("answer", f"ANSWER_{answer.upper()}", accepted)
        if answer != "token" and isinstance(sampler, AWRS):
            accepted = '"auto" or "mask": the engine draws, from all that is allowed'
            raise StrategyError("strategy.sampler", f"awrs with ANSWER_{answer.upper()}", accepted)
        if answer == "mask" and law.truncates:
            accepted = "ANSWER_LOGITS or ANSWER_TOKEN: a mask cannot follow a truncation"
            raise StrategyError("answer", "ANSWER_MASK with a truncated law", accepted)
        self._matcher = within_budget(matcher, max_new_tokens)
        self.answer = answer
        self._sampler = sampler
        self._law = law
        self._seed = Stream(seed).seed
        self._max_new_tokens = max_new_tokens
        self._row_size = row_size
        self._most = most
        self._members: dict[int, Member] = {}

    @property
    def rows(self) -> int:
        """Of the next step, as far as it is known: the engine says."""
        return 0

    def __len__(self) -> int:
        """How many sequences are open."""
        return len(self._members)

    def fork(self, parent: int, to: int, sequence: int) -> None:
        """Open `to` where `parent` stands. Raises InputError for an id that is not, or is, open."""
        if to in self._members:
            raise InputError("fork.to", to, "an id that is not open")
        self._open(to, self._member("fork.parent", parent).copy(sequence), "fork")

    def close(self, id: int) -> None:
        """Forget a sequence. Raises InputError for an id that is not open."""
        self._member("close.id", id)
        del self._members[id]

    def step(self, rows: Sequence[RowOf], logits: Logits | None) -> Answered:
        """Answer each row.

        logits: [R, row_size], one row each; None for masks alone.
        A row whose logits hold NaN, that nothing continues, or whose engine drew what was not
        allowed, ends its sequence. One that had ended before is answered with how it ended.
        Raises InputError for rows that no step can have; the group is then of no more use.
        """
        self._check(rows, logits)
        members = [self._take_up(i, row) for i, row in enumerate(rows)]
        live = [i for i, member in enumerate(members) if member.status == "running"]
        if self.answer == "token":
            assert logits is not None
            draws = dict(zip(live, self._draw(members, live, logits), strict=True))
            return Answered(answers(rows, members, draws))
        made = dict(zip(live, self._offer(members, live, logits), strict=True))
        draws = {i: self._offered(members[i], offer) for i, offer in made.items()}
        return Answered(answers(rows, members, draws), self._stacked(len(rows), made, logits))

    def _draw(self, members: list[Member], live: list[int], logits: Logits) -> list[Draw]:
        """Draw a token for each live row and go on with it."""
        states = [members[i].state for i in live]
        some = logits if len(live) == len(logits) else logits[live]
        steps = prepare_rows(self._sampler, some, self._matcher, states, self._law) if live else []
        draws = []
        for i, step in zip(live, steps, strict=True):
            member = members[i]
            stream = Stream(self._seed, member.sequence, member.position)
            draw = step(StreamSource(stream))
            member.total += draw.log_weight
            if draw.token == NO_TOKEN:
                member.end(draw.status, draw.reason)
            else:
                self._advance(member, draw.token)
            draws.append(draw)
        return draws

    def _offer(self, members: list[Member], live: list[int], logits: Logits | None) -> list[Offer]:
        states = [members[i].state for i in live]
        if logits is not None and len(live) < len(logits):
            logits = logits[live]
        return offers(self._matcher, states, logits, self._law, self._row_size)

    def _offered(self, member: Member, offer: Offer) -> Draw:
        """What a sequence is told beside its mask."""
        if offer.reason:
            member.end("dead", offer.reason)
            return Draw(NO_TOKEN, -math.inf, "dead", reason=offer.reason)
        member.total += offer.log_weight
        member.awaits = True
        return Draw(NO_TOKEN, offer.log_weight, "running")

    def _stacked(self, count: int, made: dict[int, Offer], logits: Logits | None) -> Logits:
        """The offers as one array; nothing for rows without one."""
        if self.answer == "mask":
            masks: Mask = np.zeros((count, mask_words(self._row_size)), np.uint32)
            for i, offer in made.items():
                masks[i] = offer.mask
            return masks
        assert logits is not None
        kept = np.full(logits.shape, -np.inf, logits.dtype)
        for i, offer in made.items():
            offer.copy_allowed(logits[i], kept[i])
        return kept

    def _take_up(self, i: int, row: RowOf) -> Member:
        """The sequence of a row, gone on by the token that its engine drew."""
        member = self._members.get(row.id)
        field = f"step.rows[{i}].token"
        if member is None:
            if row.token is not None:
                raise InputError(field, row.token, f"none: {row.id} is a new sequence")
            member = Member(self._matcher.start(), row.sequence)
            self._open(row.id, member, f"step.rows[{i}]")
        elif member.awaits:
            if row.token is None:
                accepted = f"the token that was drawn from the last answer to {row.id}"
                raise InputError(field, "nothing", accepted)
            member.awaits = False
            self._advance(member, row.token)
        elif row.token is not None and member.status == "running":
            raise InputError(field, row.token, "none: the tokens of this stream are drawn here")
        return member

    def _advance(self, member: Member, token: int) -> None:
        """Go on by one token, to the end of the sequence where it is one."""
        vocabulary = self._matcher.vocabulary
        state, reason = next_state(self._matcher, member.state, token)
        if state is None:
            member.end("dead", reason)
            return
        member.state = state
        member.position += 1
        if token in vocabulary.eos_ids:
            member.end("finished", "")
        elif member.position == self._max_new_tokens:
            member.end("length", "")

    def _open(self, id: int, member: Member, field: str) -> None:
        if len(self._members) == self._most:
            accepted = f"at most {self._most} open sequences; close those that have ended"
            raise InputError(field, f"sequence {id}, one more", accepted)
        if not 0 <= member.sequence < 1 << 32:
            raise InputError(f"{field}.sequence", member.sequence, _SEQUENCE_NUMBERS)
        self._members[id] = member

    def _member(self, field: str, id: int) -> Member:
        member = self._members.get(id)
        if member is None:
            raise InputError(field, id, "the id of an open sequence")
        return member

    def _check(self, rows: Sequence[RowOf], logits: Logits | None) -> None:
        if not rows:
            raise InputError("step.rows", "none", "at least one row")
        if len({row.id for row in rows}) < len(rows):
            raise InputError("step.rows", "two rows of one id", "each sequence once")
        if logits is None:
            if self.answer != "mask":
                raise InputError("step.logits", "none", "logits, which only ANSWER_MASK can miss")
        elif logits.shape != (len(rows), self._row_size):
            accepted = f"({len(rows)}, {self._row_size}): one row of logits for each of step.rows"
            raise InputError("step.logits.shape", tuple(logits.shape), accepted)
