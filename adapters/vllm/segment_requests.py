"""Particles as requests to an engine: what is asked for a segment, and what its answer means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from midstream.adapters.vllm.request import ARGUMENT
from midstream.adapters.vllm.weights import RecordsLostError, by_sequence, weigh
from midstream.adapters.vllm.worker_extension import PlainRecord
from midstream.middleware.segments import Continuation, Segment
from midstream.middleware.strategy import Strategy

GENERATE = "/inference/v1/generate"
"""The path for token ids in and out, of servers started with `--enable-scale-out`."""

COMPLETIONS = "/v1/completions"


def key_of(prefix: Continuation) -> str:
    """What the records of a segment are kept under."""
    return f"{prefix.run}:{prefix.slot}:{prefix.segment}"


def prompt_of(prefix: Continuation) -> list[int]:
    """The ids that the engine reads; all but the last few are in its prefix cache."""
    return [*prefix.prompt, *prefix.generated]


def fields_of(prefix: Continuation, steps: int, strategy: Strategy) -> dict[str, Any]:
    """The fields of SamplingParams, and of an HTTP request, that ask for a segment."""
    law = strategy.law
    return {
        "max_tokens": steps,
        "temperature": law.temperature,
        "top_k": law.top_k,
        "top_p": law.top_p,
        "min_p": law.min_p,
        "n": 1,
        ARGUMENT: {
            "strategy": strategy.model_dump(mode="json", exclude_unset=True),
            "resume": {
                "run": prefix.run,
                "slot": prefix.slot,
                "segment": prefix.segment,
                "generated": len(prefix.generated),
                "sequence": prefix.sequence,
            },
        },
    }


def generate_body(prefix: Continuation, steps: int, strategy: Strategy) -> dict[str, Any]:
    """The body of a request to `GENERATE`."""
    fields = fields_of(prefix, steps, strategy)
    asked = fields.pop(ARGUMENT)
    params = {**fields, "detokenize": False, "extra_args": {ARGUMENT: asked}}
    return {"token_ids": prompt_of(prefix), "sampling_params": params}


def completion_body(prefix: Continuation, steps: int, strategy: Strategy) -> dict[str, Any]:
    """The body of a request to `COMPLETIONS`."""
    fields = fields_of(prefix, steps, strategy)
    asked = fields.pop(ARGUMENT)
    return {
        **fields,
        "prompt": prompt_of(prefix),
        "return_token_ids": True,
        "add_special_tokens": False,
        "vllm_xargs": {ARGUMENT: json.dumps(asked)},
    }


def segment_of(
    prefix: Continuation,
    token_ids: Sequence[int],
    finish_reason: str | None,
    rows: Sequence[PlainRecord],
) -> Segment:
    """A segment from an answer and its records. RecordsLostError where they do not fit."""
    records = by_sequence(rows).get(prefix.sequence)
    if records is None:
        raise RecordsLostError(f"no records of {key_of(prefix)}")
    text = weigh(token_ids, records, finish_reason)
    if text.status == "length":  # of the segment, not of the whole text
        return Segment(text.token_ids, text.log_weight, text.checks, "running")
    return Segment(text.token_ids, text.log_weight, text.checks, text.status, text.reason)
