"""The fixed ids before a text, and the room behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from midstream.middleware.host import Host


def context_of(host: Host, context_ids: Sequence[int] | None) -> list[int]:
    """What is given; else the host's beginning of sequence, else its end of sequence, else none."""
    if context_ids is not None:
        return list(context_ids)
    begin = _begin_id(host)
    return [begin] if begin is not None else list(host.vocabulary.eos_ids[:1])


def room_behind(host: Any, count: int) -> int | None:
    """How many tokens a host's model takes behind so many; None where it does not say."""
    most: int | None = getattr(host, "context_length", None)
    return None if most is None else most - count


def _begin_id(host: Any) -> int | None:
    """Of the host's tokenizer, or of its model's configuration."""
    model = getattr(host, "model", None)
    for owner in (getattr(host, "tokenizer", None), getattr(model, "config", None)):
        begin = getattr(owner, "bos_token_id", None)
        if isinstance(begin, int):
            return begin
    return None
