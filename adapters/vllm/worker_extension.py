"""What the engine's workers can be asked for: `--worker-extension-cls`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from midstream.adapters.vllm.compiling import Unread, compiler_here
from midstream.adapters.vllm.records import RECORDS_HERE
from midstream.middleware.strategy import Strategy

PlainRecord = tuple[int, int, int, float, str, int, str, int]
"""sequence, position, token, log_weight, status, checks, reason, child of a record."""


class WeightsExtension:
    """Methods of every worker, called by `collective_rpc`."""

    def midstream_records(self, keys: Sequence[str]) -> list[list[PlainRecord] | None]:
        """The records of each key, in order; None for a key that is not known (any more)."""
        return [_plain(key) for key in keys]

    def midstream_prepare(self, strategy: str) -> tuple[str, str]:
        """Compile a strategy's constraint, on a thread of its own: ("ready", ""), ("compiling",
        ""), or ("failed", why). Ask again until it is not "compiling".
        """
        try:
            future = compiler_here().start(Unread.of(Strategy.load(strategy)))
            if not future.done():
                return "compiling", ""
            future.result()
        except Exception as error:
            return "failed", str(error)
        return "ready", ""

    def midstream_vocabulary(self) -> dict[str, Any]:
        """Fingerprint, size and end-of-sequence ids of the engine's vocabulary."""
        vocabulary = compiler_here().vocabulary
        return {
            "fingerprint": vocabulary.fingerprint,
            "size": len(vocabulary),
            "eos_ids": list(vocabulary.eos_ids),
        }


def _plain(key: str) -> list[PlainRecord] | None:
    found = RECORDS_HERE.read(key)
    if found is None:
        return None
    return [
        (*place, r.token, r.log_weight, r.status, r.checks, r.reason, r.child)
        for place, r in sorted(found.items())
    ]
