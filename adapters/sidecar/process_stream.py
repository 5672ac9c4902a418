"""One Process stream after its handshake: what each message is answered with.

Everything here may take as long as a draw does; the service calls it from a thread, one message
after another.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from midstream.adapters.sidecar.groups import SequenceGroup
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.metrics import Metrics
from midstream.adapters.sidecar.particle_group import Grown, ParticleGroup
from midstream.adapters.sidecar.process_handshake import Opened
from midstream.adapters.sidecar.sequences import Answered, RowOf, Stepped
from midstream.adapters.sidecar.step_rows import StepRows
from midstream.adapters.sidecar.wire.results import (
    STATUSES,
    resampling_message,
    summary_message,
)
from midstream.adapters.sidecar.wire.tensors import DTYPES, Regions, array_from, tensor_of
from midstream.middleware.errors import InputError
from midstream.proto.v1 import logits_processing_pb2 as pb

METRICS = "logits_processing"

QUICK_LOGITS = 1 << 18
"""About a millisecond of drawing."""


class ProcessStream:
    """The state of a stream. Not for two threads at once."""

    def __init__(
        self, opened: Opened, regions: Regions | None, metrics: Metrics, limits: Limits
    ) -> None:
        self._opened = opened
        self._limits = limits
        self._regions = regions
        self._metrics = metrics
        self._number = 0
        self._rows = StepRows(opened.row_size, opened.dtype)

    @property
    def over(self) -> bool:
        """Whether a run of particles has ended, and with it the stream."""
        group = self._opened.group
        return isinstance(group, ParticleGroup) and group.over

    def is_quick(self, request: pb.ProcessRequest) -> bool:
        """Whether the answer is known to take less than a millisecond.

        A step is quick with few logits, where the constraint is an automaton: its mask is one walk
        of a trie, kept once it was made. What a grammar takes is not known before.
        """
        if request.WhichOneof("message") != "step":
            return True
        rows = max(len(request.step.rows), self._opened.group.rows)
        return self._opened.is_automaton and rows * self._opened.row_size <= QUICK_LOGITS

    def answer(self, request: pb.ProcessRequest) -> bytes | None:
        """The answer to a message, as it is sent; None for one that has none.

        Raises InputError that names the field, after which the stream is of no more use.
        """
        kind = request.WhichOneof("message")
        if kind == "step":
            return pb.ProcessResponse(result=self._step(request.step)).SerializeToString()
        group = self._opened.group
        if kind not in ("fork", "close"):
            got = "nothing" if kind is None else "a second handshake"
            raise InputError("message", got, "a step, fork or close")
        if isinstance(group, ParticleGroup):
            raise InputError(kind, "one of a particle", "none: particles go on as results say")
        if kind == "fork":
            fork = request.fork
            group.fork(fork.parent, fork.to, fork.sequence)
        else:
            group.close(request.close.id)
        return None

    def summary(self) -> bytes | None:
        """What ends a run of particles, as it is sent; those that would go on are cancelled."""
        group, ready = self._opened.group, self._opened.prepared
        if not isinstance(group, ParticleGroup):
            return None
        summary = summary_message(
            group.result(),
            sampler=ready.name,
            sampler_reason=ready.reason,
            seed=ready.strategy.seed,
        )
        return pb.ProcessResponse(summary=summary).SerializeToString()

    def _step(self, step: pb.Step) -> pb.Result:
        if step.number != self._number:
            accepted = f"{self._number}: steps are numbered from 0 on, one by one"
            raise InputError("step.number", step.number, accepted)
        self._number += 1
        group = self._opened.group
        if isinstance(group, ParticleGroup):
            return self._particles(group, step)
        return self._sequences(group, step)

    def _particles(self, group: ParticleGroup, step: pb.Step) -> pb.Result:
        if step.rows:
            accepted = "none: the rows are those that the last result asked for"
            raise InputError("step.rows", f"{len(step.rows)} rows", accepted)
        grown = group.step(self._logits(step, group.rows))
        for status, checks in grown.drawn:
            self._metrics.draw(METRICS, status, checks)
        self._metrics.effective_sample(METRICS, grown.ess, group.particles)
        return _grown(step.number, grown)

    def _sequences(self, group: SequenceGroup, step: pb.Step) -> pb.Result:
        rows = [
            RowOf(row.id, row.token if row.HasField("token") else None, row.sequence)
            for row in step.rows
        ]
        self._check_size(len(rows), group)
        answered = group.step(rows, self._logits(step, len(rows)))
        for row in answered.rows:
            if row.drawn:
                self._metrics.draw(METRICS, row.status, row.checks)
        return self._answered(step.number, answered)

    def _check_size(self, rows: int, group: SequenceGroup) -> None:
        """InputError for more rows than can be read, or than an answer can hold."""
        most = self._limits.sequences
        if group.answer == "logits":
            stored = DTYPES[self._opened.dtype].itemsize
            most = min(most, (self._limits.message_bytes >> 1) // (stored * self._opened.row_size))
        if rows > most:
            raise InputError("step.rows", f"{rows} rows", f"at most {most} for such answers")

    def _logits(self, step: pb.Step, rows: int) -> npt.NDArray[Any] | None:
        if not step.HasField("logits"):
            return None
        group, name = self._opened.group, "step.logits"
        if isinstance(group, ParticleGroup) or group.answer == "token":
            return self._rows.read(step.logits, self._regions, name, rows)
        shape = rows, self._opened.row_size
        return array_from(
            step.logits, self._regions, name=name, dtype=self._opened.dtype, shape=shape
        )

    def _answered(self, number: int, answered: Answered) -> pb.Result:
        result = pb.Result(number=number, rows=[_sequence_result(row) for row in answered.rows])
        offered = answered.offered
        if offered is not None:
            dtype = self._opened.dtype if offered.dtype.kind == "f" else None
            result.tensor.CopyFrom(tensor_of(offered, dtype))
        return result


def _sequence_result(row: Stepped) -> pb.SequenceResult:
    return pb.SequenceResult(
        id=row.id,
        token=row.token,
        log_weight=row.log_weight,
        total_log_weight=row.total_log_weight,
        status=STATUSES[row.status],
        reason=row.reason,
        checks=row.checks,
    )


def _grown(number: int, grown: Grown) -> pb.Result:
    result = pb.Result(number=number, parents=grown.parents, tokens=grown.tokens)
    event = grown.resampled
    if event is not None:
        message = resampling_message(event.position, event.ancestors, event.ess)
        result.resampling.CopyFrom(message)
    return result
