"""One request inside the engine: where it stands, and how its next token is drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midstream.adapters.vllm.allowance import Allowance
from midstream.adapters.vllm.compiling import Compiler, Unread
from midstream.adapters.vllm.records import Place, Record
from midstream.adapters.vllm.request import RequestPlan
from midstream.kernels.bitmask import Mask as Bits
from midstream.middleware.bytes.beyond import Beyond, starts_at
from midstream.middleware.draw import Status
from midstream.middleware.errors import StrategyError, VocabularyError
from midstream.middleware.law import PLAIN
from midstream.middleware.matcher import Matcher, State, fault, next_state
from midstream.middleware.random import Stream, StreamSource, TokenUniforms, sequence_of
from midstream.middleware.sampling import Logits, Mask, Read, Sampler, chosen
from midstream.middleware.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Asking:
    """The state that a row is drawn in, and its restriction (uint32 [W])."""

    state: State
    bits: Bits


@dataclass(frozen=True, slots=True)
class Nothing:
    """A row that nothing can be drawn from, and why."""

    reason: str


class Slot:
    """A request's matcher and the states along its text.

    A token is a function of the plan, the prompt, the generated ids and the logits alone, so a
    request that was preempted, or whose token was thrown away, draws the same again.
    """

    __slots__ = (
        "_allowance",
        "_dead",
        "_end",
        "_ends",
        "_matcher",
        "_resumed",
        "_sampler",
        "_states",
        "_stream_sequence",
        "_tokens",
        "_uniforms",
        "by_mask",
        "plan",
    )

    def __init__(self, plan: RequestPlan, prompt: Sequence[int], compiler: Compiler) -> None:
        self.plan = plan
        self._ends = compiler.vocabulary.eos_ids
        self._end = self._ends[0]
        self._sampler: Sampler = plan.strategy.build_sampler()
        self._resumed: list[int] = []
        if plan.resume is not None:
            self._stream_sequence = plan.resume.sequence
        else:
            self._stream_sequence = sequence_of(prompt, plan.child)
        self._uniforms = TokenUniforms(plan.strategy.seed, self._stream_sequence)
        self.by_mask = False  # whether the sampler `mask` draws
        self._dead = ""
        self._allowance = Allowance()
        self._tokens: list[int] = []
        self._states: list[State] = []
        self._matcher: Matcher | None = None
        try:
            self._resumed = _resumed(plan, prompt)
            self._matcher = self._compiled(compiler)
            self._sampler = chosen(self._sampler, self._matcher)
            self.by_mask = isinstance(self._sampler, Mask) and self._matcher.has_mask
            self._states.append(self._matcher.start())
        except Exception as error:  # one request's constraint must not stop the engine
            self._dead = str(error) or type(error).__name__

    def _compiled(self, compiler: Compiler) -> Matcher:
        asked = self.plan.vocabulary
        own = compiler.vocabulary.fingerprint
        if asked is not None and asked != own:
            raise VocabularyError("midstream.vocabulary", asked, f"{own}, the model's own")
        matcher, self._allowance = compiler.matcher(
            Unread.of(self.plan.strategy), self.plan.max_new_tokens
        )
        begun = self.plan.begun
        if not begun:
            return matcher
        state = Beyond(matcher).state_after(begun)
        if state is None:
            accepted = "bytes with which a text of the constraint may begin"
            raise StrategyError("midstream.begun", begun.hex(), accepted)
        return starts_at(matcher, state)

    @classmethod
    def broken(cls, compiler: Compiler) -> Slot:
        """A slot of a request that cannot be read: it ends at once, and its record has no id."""
        plan = RequestPlan("", Strategy(), PLAIN, 1, 0, None, None)
        slot = cls(plan, (), compiler)
        slot.kill("the request could not be read")
        return slot

    @property
    def end(self) -> int:
        """The token that ends a text."""
        return self._end

    def kill(self, reason: str) -> None:
        """Nothing is drawn any more: end of sequence, weight 0."""
        self._dead = self._dead or reason

    def asking(self, output: Sequence[int], size: int) -> Asking | Nothing:
        """Where the text stands after `output`, and what a row of `size` is restricted to there.

        Output that the constraint refuses ends its own row, not the request: a drafted token that
        the engine will throw away stands in it like any other.
        """
        self.kill(self._allowance.refusal())
        if self._dead:
            return Nothing(self._dead)
        began = time.thread_time()
        try:
            state, reason = self._state([*self._resumed, *output])
            if state is None:
                return Nothing(reason)
            assert self._matcher is not None
            return Asking(state, self._sampler.restriction(self._matcher, state, size))
        except Exception as error:  # one request's constraint must not stop the engine
            self.kill(fault(error))
            return Nothing(self._dead)
        finally:
            self._allowance.spend(time.thread_time() - began)

    def uniforms(self, output: Sequence[int]) -> list[float]:
        """The first random numbers of the token after `output`."""
        return self._uniforms.at(len(self._resumed) + len(output))

    def place(self, output: Sequence[int]) -> Place:
        """Where the record of the token after `output` is kept."""
        return self.plan.key, self._stream_sequence, len(output)

    def record(self, token: int, log_weight: float) -> Record:
        """The record of a token that the sampler `mask` drew."""
        ended = token in self._ends
        status: Status = "finished" if ended else "running"
        return Record(self._end if ended else token, log_weight, status, 0, "", self.plan.child)

    def draw(
        self, logits: Logits, asked: Asking | Nothing, read: Read | None, output: Sequence[int]
    ) -> Record:
        """The token after `output`, the text that `asked` stands for. Never raises.

        logits: the row [V], unscaled. read: the row under its law, where it was read already.
        """
        began = time.thread_time()
        try:
            return self._draw(logits, asked, read, output)
        except Exception as error:
            self.kill(fault(error))
            return self._no_token("dead", self._dead, 0)
        finally:
            self._allowance.spend(time.thread_time() - began)

    def _draw(
        self, logits: Logits, asked: Asking | Nothing, read: Read | None, output: Sequence[int]
    ) -> Record:
        if isinstance(asked, Nothing):
            return self._no_token("dead", asked.reason, 0)
        assert self._matcher is not None
        law = self.plan.law
        step = self._sampler.prepare(logits, self._matcher, asked.state, law=law, read=read)
        position = len(self._resumed) + len(output)
        stream = Stream(self.plan.strategy.seed, self._stream_sequence, position)
        draw = step(StreamSource(stream, np.array(self._uniforms.at(position))))
        if draw.token < 0:
            return self._no_token(draw.status, draw.reason, draw.checks)
        child = self.plan.child
        return Record(draw.token, draw.log_weight, draw.status, draw.checks, child=child)

    def _no_token(self, status: Status, reason: str, checks: int) -> Record:
        return Record(self._end, -math.inf, status, checks, reason, self.plan.child)

    def _state(self, generated: list[int]) -> tuple[State | None, str]:
        """The state after the generated ids, from the longest part that is known."""
        assert self._matcher is not None
        common = len(self._tokens)
        if generated[:common] != self._tokens:  # put back, or drawn again: what still holds
            pairs = zip(self._tokens, generated, strict=False)
            common = next((i for i, (old, new) in enumerate(pairs) if old != new), len(generated))
            del self._tokens[common:]
            del self._states[common + 1 :]
        for token in generated[common:]:
            following, reason = next_state(self._matcher, self._states[-1], token)
            if following is None:
                return None, reason
            self._tokens.append(token)
            self._states.append(following)
        return self._states[-1], ""


def _resumed(plan: RequestPlan, prompt: Sequence[int]) -> list[int]:
    """The end of a prompt that belongs to the constrained text."""
    generated = plan.resume.generated if plan.resume is not None else 0
    if generated > len(prompt):
        accepted = f"at most the {len(prompt)} ids of the prompt"
        raise StrategyError("midstream.resume.generated", generated, accepted)
    return list(prompt[len(prompt) - generated :])
