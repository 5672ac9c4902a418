"""Weights of what an engine answered: the sum of exactly the positions that a response holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from midstream.adapters.vllm.records import Record
from midstream.adapters.vllm.request import ARGUMENT
from midstream.adapters.vllm.worker_extension import PlainRecord
from midstream.middleware.draw import Status
from midstream.middleware.errors import InputError
from midstream.middleware.random import sequence_of


class RecordsLostError(LookupError):
    """Records that are not kept (any more), so that a weight cannot be told."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """One text with its weight.

    log_weight: nats, -inf for a text that died. status: `finished`; `length` where max_tokens cut
    it off; `cancelled` where a stop string, a stop token or an abort did: both have the weight of
    what is there and are no complete texts; `dead` or `exhausted`, with the reason.
    """

    token_ids: tuple[int, ...]
    log_weight: float
    status: Status
    reason: str
    checks: int


def weigh(
    token_ids: Sequence[int], records: Mapping[int, Record], finish_reason: str | None
) -> Weighted:
    """Add up the records of a response's positions.

    records: of its sequence, by position. Raises RecordsLostError where one is missing, or is of
    another token than the response has.
    """
    total, checks = 0.0, 0
    last: Record | None = None
    for position, token in enumerate(token_ids):
        last = records.get(position)
        if last is None or last.token != token:
            raise RecordsLostError(f"no record of token {token} at position {position}")
        total += last.log_weight
        checks += last.checks
    status: Status = "cancelled" if last is None else last.status
    if status == "running":
        status = "length" if finish_reason == "length" else "cancelled"
    reason = last.reason if last is not None else ""
    if status == "cancelled":
        reason = f"the engine stopped it: {finish_reason or 'not finished'}"
    return Weighted(tuple(token_ids), total, status, reason, checks)


def by_sequence(rows: Iterable[PlainRecord]) -> dict[int, dict[int, Record]]:
    """Plain records as a worker gives them, by sequence and position."""
    found: dict[int, dict[int, Record]] = {}
    for sequence, position, token, log_weight, status, checks, reason, child in rows:
        record = Record(token, float(log_weight), _status(status), checks, reason, child)
        found.setdefault(sequence, {})[position] = record
    return found


def weights(llm: Any, output: Any, params: Any) -> list[Weighted]:
    """The weight of each text that `llm.generate(prompt, params)` answered.

    output: one RequestOutput. params: the SamplingParams it was asked with, into which admission
    wrote the request's id. Needs the worker extension:
    LLM(worker_extension_cls="midstream.adapters.vllm.WeightsExtension").
    Raises InputError where the request had no strategy, RecordsLostError where records are gone.
    """
    return _weighed(output, read_records(llm, [request_id(params)])[0])


async def weights_async(engine: Any, output: Any, params: Any) -> list[Weighted]:
    """`weights` of what an `AsyncLLM` answered, whose last RequestOutput is `output`."""
    keys = [request_id(params)]
    answers = await engine.collective_rpc("midstream_records", args=(keys,))
    return _weighed(output, told_of(keys, answers[0])[0])


def _weighed(output: Any, rows: Sequence[PlainRecord]) -> list[Weighted]:
    found = by_sequence(rows)
    answers = []
    for text in output.outputs:
        records = found.get(sequence_of(output.prompt_token_ids, text.index), {})
        answers.append(weigh(text.token_ids, records, text.finish_reason))
    return answers


def request_id(params: Any) -> str:
    """The id that admission wrote into a request's parameters."""
    asked = (params.extra_args or {}).get(ARGUMENT)
    if not isinstance(asked, Mapping) or "id" not in asked:
        accepted = "those of a request with a strategy, after it was made"
        raise InputError("params", "parameters without an id", accepted)
    return str(asked["id"])


def read_records(llm: Any, keys: Sequence[str]) -> list[list[PlainRecord]]:
    """The records of each key, from the first worker: all of them draw alike."""
    return told_of(keys, llm.collective_rpc("midstream_records", args=(list(keys),))[0])


def told_of(
    keys: Sequence[str], answers: Sequence[list[PlainRecord] | None]
) -> list[list[PlainRecord]]:
    """What a worker told of each key. RecordsLostError where it knows nothing of one."""
    told: list[list[PlainRecord]] = []
    for key, answer in zip(keys, answers, strict=True):
        if answer is None:
            raise RecordsLostError(f"no records of {key}: not asked here, or forgotten")
        told.append(answer)
    return told


def _status(value: str) -> Status:
    for status in get_args(Status):
        if status == value:
            known: Status = status
            return known
    raise RecordsLostError(f"a record of status {value!r}")
