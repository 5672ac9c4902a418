"""A model with our byte laws and the peer's on it, for measurements over bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.bytes_model import Trained
from benchmarks.peer_bytes import PeerBytes
from benchmarks.timing import CLOCKS
from midstream.adapters.transformers import TransformersHost
from midstream.middleware.bytes import Beam, ByteModel

BEAMS = {"width 1": Beam(1, 0), "width 4": Beam(4, 1e-7), "default": Beam()}


@dataclass(frozen=True, slots=True)
class Bench:
    """The model, ours and theirs on it, and the size of the run."""

    made: Trained
    canonical: ByteModel
    beams: dict[str, ByteModel]
    peers: dict[str, PeerBytes]
    now: Callable[[], float]
    quick: bool

    def excerpts(self, length: int) -> list[bytes]:
        """One from each held-out file, from a third of its lines on."""
        texts = []
        for text in self.made.held_out[: 3 if self.quick else None]:
            lines = text.splitlines(keepends=True)
            texts.append("".join(lines[len(lines) // 3 :])[:length].encode())
        return texts


@contextmanager
def bench_of(
    made: Trained, end: bytes, widths: Sequence[int], clock: str, *, quick: bool
) -> Iterator[Bench]:
    """The model, and the peer at some widths of its beam, until the end of the context."""
    host = TransformersHost(made.model, made.tokenizer)
    beams = {name: ByteModel(host, target="all", beam=beam) for name, beam in BEAMS.items()}
    peers = {f"K = {k}": PeerBytes(made.model, made.tokenizer, end, width=k) for k in widths}
    yield Bench(made, ByteModel(host), beams, peers, CLOCKS[clock], quick)
    for peer in peers.values():
        peer.close()
