"""The logits processor for vLLM's two interfaces (V1, and the V2 model runner).

It sees rows before temperature and truncation, draws each row's token by the request's strategy,
and leaves that token alone: whatever the engine applies after it cannot change the draw.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from midstream.adapters.vllm.admission import admit
from midstream.adapters.vllm.compiling import Compiler, serve_here
from midstream.adapters.vllm.drawing import RowOfStep, draw_step
from midstream.adapters.vllm.interfaces import V1, V2, validation_error
from midstream.adapters.vllm.records import RECORDS_HERE
from midstream.adapters.vllm.request import plan_of
from midstream.adapters.vllm.slots import Slot
from midstream.adapters.vllm.vocabulary import engine_vocabulary
from midstream.middleware.errors import InputError
from midstream.middleware.host import logits_on_host

if TYPE_CHECKING:
    from torch import Tensor
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams

_log = logging.getLogger(__name__)


class ConstrainedSampling(V1, V2):
    """Weighted constrained sampling for requests that carry a strategy; others are untouched.

    Per request `extra_args={"midstream": {"strategy": {...}}}`, see `request`. Each token has the
    law of the strategy's sampler under the request's temperature, top_k, top_p and min_p; its log
    weight goes into `records`, to be read by `weights`. A request that cannot go on ends with end
    of sequence and weight 0, and says why in its record.
    """

    def __init__(self, vllm_config: VllmConfig, *interface: Any) -> None:
        # V1 gives (device, is_pin_memory), V2 its view of the requests.
        self._requests = interface[0] if len(interface) == 1 else None
        self._compiler = Compiler(engine_vocabulary(vllm_config))
        self._compiler.warm()
        serve_here(self._compiler)
        self._slots: dict[int, Slot] = {}
        self._outputs: dict[int, list[int]] = {}  # V1's live lists of output ids
        self._pending: dict[int, SamplingParams] = {}  # of V2, whose prompts come with the step

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse what is no strategy, before it reaches the engine. Parses, and compiles nothing
        large: it runs in the server's event loop.
        """
        try:
            admit(sampling_params)
        except InputError as error:
            raise validation_error(error) from error
        except Exception as error:
            fault = InputError("midstream", type(error).__name__, "a strategy that can be read")
            raise validation_error(fault) from error

    def is_argmax_invariant(self) -> bool:
        """False: greedy requests are drawn here too."""
        return False

    # V1

    def update_state(self, batch_update: Any) -> None:
        """Follow the engine's batch: removed, added, moved, in that order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._slots.pop(index, None)
            self._outputs.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            self._slots.pop(index, None)
            self._outputs.pop(index, None)
            slot = self._slot(params, prompt)
            if slot is not None:
                self._slots[index], self._outputs[index] = slot, output
        for source, target, direction in batch_update.moved:
            swap = direction.name == "SWAP"
            for table in (self._slots, self._outputs):
                _move(table, source, target, swap=swap)

    # V2

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take a request into a slot. Its prompt is read with its first row."""
        self._slots.pop(req_idx, None)
        self._pending.pop(req_idx, None)
        try:
            asked = plan_of(sampling_params) is not None
        except Exception:  # admitted once, refused now: the slot itself says so
            asked = True
        if asked:
            self._pending[req_idx] = sampling_params
        return asked

    def apply_staged_writes(self) -> None:
        """Nothing is staged."""

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Leave each strategy's row the token drawn: 0 there, -inf elsewhere, in place."""
        if ctx is not None:
            self._apply_rows(logits, ctx)
        elif self._slots:
            rows = [
                RowOfStep(index, slot, self._outputs[index]) for index, slot in self._slots.items()
            ]
            _force(logits, rows)
        return logits

    def _apply_rows(self, logits: Tensor, ctx: Any) -> None:
        """V2: rows are those of this step, several of a request where tokens were drafted."""
        if not self._slots and not self._pending:
            return
        concerned = self._slots.keys() | self._pending.keys()
        if concerned.isdisjoint(ctx.idx_mapping_np.tolist()):
            return
        requests = self._requests
        assert requests is not None  # this is V2
        slots = ctx.expanded_idx_mapping.tolist()
        fed, positions = ctx.input_ids.tolist(), ctx.pos.tolist()
        places = ctx.expanded_local_pos.tolist()
        rows: list[RowOfStep] = []
        history: list[int] = []
        for row, index in enumerate(slots):
            if index not in concerned:
                continue
            if places[row] == 0:
                ids = requests.all_token_ids.gpu[index, : positions[row] + 1]
                history = ids.tolist()
            else:
                history = [*history, fed[row]]
            prompt_length = int(requests.prompt_len.np[index])
            if index in self._pending:
                slot = self._slot(self._pending.pop(index), history[:prompt_length])
                assert slot is not None
                self._slots[index] = slot
            rows.append(RowOfStep(row, self._slots[index], history[prompt_length:]))
        _force(logits, rows)

    def _slot(self, params: Any, prompt: Sequence[int] | None) -> Slot | None:
        """A slot for a request that asks for one. What cannot be read leaves a dead one."""
        try:
            plan = plan_of(params)
            if plan is None:
                return None
            slot = Slot(plan, prompt or (), self._compiler)
            if prompt is None:
                slot.kill("the prompt came as embeddings, without ids")
            return slot
        except Exception:
            _log.exception("a request could not be set up")
            return Slot.broken(self._compiler)


def _force(logits: Tensor, rows: Sequence[RowOfStep]) -> None:
    """Draw the rows' tokens and leave each row its own, in place."""
    if not rows:
        return
    host = logits_on_host(logits)
    try:
        tokens = draw_step(host, rows, RECORDS_HERE)
    except Exception as error:  # an exception here would end the whole engine
        _log.exception("a step failed")
        for each in rows:
            each.slot.kill(f"{type(error).__name__}: {error}")
        tokens = draw_step(host, rows, RECORDS_HERE)  # of the dead: nothing is read
    # The memory of a tensor on the host: numpy indexes it in a tenth of the time.
    shared = logits.device.type == "cpu" and logits.dtype.itemsize >= 4
    target: Any = host if shared else logits
    which = [each.row for each in rows]
    first = which[0]
    if which == [*range(first, first + len(which))]:
        target[first : first + len(which)] = -math.inf
    else:
        target[which] = -math.inf
    target[which, tokens] = 0.0


def _move(table: dict[int, Any], source: int, target: int, *, swap: bool) -> None:
    moved, replaced = table.pop(source, None), table.pop(target, None)
    if moved is not None:
        table[target] = moved
    if swap and replaced is not None:
        table[source] = replaced
