"""What the engine's workers can be asked for: `--worker-extension-cls`."""

from __future__ import annotations

from collections.abc import Sequence

from midstream.adapters.vllm.records import RECORDS_HERE

PlainRecord = tuple[int, int, int, float, str, int, str, int]
"""sequence, position, token, log_weight, status, checks, reason, child of a record."""


class WeightsExtension:
    """Methods of every worker, called by `collective_rpc`."""

    def midstream_records(self, keys: Sequence[str]) -> list[list[PlainRecord] | None]:
        """The records of each key, in order; None for a key that is not known (any more)."""
        return [_plain(key) for key in keys]


def _plain(key: str) -> list[PlainRecord] | None:
    found = RECORDS_HERE.read(key)
    if found is None:
        return None
    return [
        (*place, r.token, r.log_weight, r.status, r.checks, r.reason, r.child)
        for place, r in sorted(found.items())
    ]
