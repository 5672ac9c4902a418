"""Laws over bytes beside genlm-bytes 0.2.0: bits, accuracy, bytes a second, cuts inside tokens.

One model, one process, one thread; the peer without its idle timer, its trie made beforehand.
"""

from __future__ import annotations

import functools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.bytes_cuts import cut_table
from benchmarks.bytes_model import Trained, trained, wide_tokenizer
from benchmarks.peer_bytes import PeerBytes, sparse_trie
from benchmarks.report import Cell, Table, arguments, show
from benchmarks.timing import CLOCKS, Samples, no_collection, ratio, take_turns
from midstream.adapters.transformers import TransformersHost
from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.next_byte import next_byte
from midstream.middleware.bytes import Beam, ByteModel
from midstream.middleware.vocabulary import Vocabulary

Float = npt.NDArray[np.float64]

END = b"<eos>"
WIDTHS = (2, 5, 10)
LENGTH = 100
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


class RowCounter:
    """Counts the token strings that the peer's model is given: its answers from memory are not in
    them.
    """

    def __init__(self, model: Any) -> None:
        self._rows = 0
        forward = model.forward

        @functools.wraps(forward)  # hosts read its signature
        def counted(*arguments: Any, **options: Any) -> Any:
            ids = arguments[0] if arguments else options["input_ids"]
            self._rows += ids.shape[0]
            return forward(*arguments, **options)

        model.forward = counted

    def of(self, score: Callable[[], float]) -> tuple[float, int]:
        """A score, and how many rows it took."""
        before = self._rows
        return score(), self._rows - before


def bits_table(bench: Bench) -> Table:
    """Bits per byte of held-out text, and the speed of the whole score."""
    texts = bench.excerpts(LENGTH)
    rows: list[list[Cell]] = []
    reports = [bench.canonical.report(text) for text in texts]
    best = [report.bits_per_byte for report in reports]
    begin = bench.now()
    for text in texts:
        bench.canonical.report(text)
    taken = (bench.now() - begin) / len(texts)
    per_byte = statistics.fmean(r.rows / len(r.text) for r in reports)
    tokens = [r.bits_per_byte_tokens or 0.0 for r in reports]
    rows.append(["token level", statistics.fmean(tokens), "", "", ""])
    mean = statistics.fmean(best)
    rows.append(["ours, canonical (stepwise)", mean, "", per_byte, LENGTH / taken])
    whole = statistics.fmean(r.bits_per_byte_prefix for r in reports)
    rows.append(["ours, canonical (prefix)", whole, "", per_byte, LENGTH / taken])
    ways: dict[str, Callable[[bytes], tuple[float, int]]] = {
        f"ours, all, {name}": lambda text, m=model: _reported(m, text)  # type: ignore[misc]
        for name, model in bench.beams.items()
    }
    counter = RowCounter(bench.made.model)
    ways |= {
        f"genlm-bytes, {name}": lambda text, p=peer: (  # type: ignore[misc]
            counter.of(lambda: _bits(p.score(text)))
        )
        for name, peer in bench.peers.items()
    }
    for name, way in ways.items():
        begin = bench.now()
        answers = [way(text) for text in texts]
        taken = (bench.now() - begin) / len(texts)
        found = [bits for bits, _ in answers]
        lower = f"{sum(b <= f + 1e-9 for b, f in zip(best, found, strict=True))} of {len(texts)}"
        per_byte = sum(count for _, count in answers) / sum(map(len, texts))
        rows.append([name, statistics.fmean(found), lower, per_byte, LENGTH / taken])
    columns = ["method", "bits a byte", "canonical no higher", "rows a byte", "bytes a second"]
    return Table(f"Held-out text, {len(texts)} files, {LENGTH} bytes of each", columns, _fine(rows))


def accuracy_table(bench: Bench) -> Table:
    """Distance to the sum over all token strings."""
    draw = random.Random(1)
    texts = [bench.excerpts(300)[i % 3][at : at + draw.randint(1, 9)] for i, at in _places(draw)]
    texts = texts[: 6 if bench.quick else 30]
    host = TransformersHost(bench.made.model, bench.made.tokenizer)
    exact = ByteModel(host, target="all", beam=Beam(10**6, 0))
    truth = [exact.law(text) for text in texts]
    ways: dict[str, Callable[[bytes], Float]] = {
        f"ours, all, {name}": model.next_byte for name, model in bench.beams.items()
    }
    ways |= {f"genlm-bytes, {name}": peer.law for name, peer in bench.peers.items()}
    rows: list[list[Cell]] = []
    for name, way in ways.items():
        found = [_divergence(way(text), law.p) for text, law in zip(texts, truth, strict=True)]
        rows.append([name, statistics.fmean(found), max(found)])
    columns = ["method", "mean JSD, bits", "largest"]
    return Table(f"Next byte beside all token strings, {len(texts)} prefixes", columns, rows)


def speed_table(bench: Bench, *, rounds: int) -> Table:
    """Bytes a second: 40 bytes after each of four prompts of about 60."""
    prompts = [text[:60] for text in bench.excerpts(300)[:4]]
    model, tokenizer = bench.made.model, bench.made.tokenizer
    count = 40

    def tokens(seed: int) -> int:
        torch.manual_seed(seed)
        done = 0
        for prompt in prompts:
            ids = torch.tensor([[0, *tokenizer.encode(prompt.decode(), add_special_tokens=False)]])
            made = model.generate(ids, do_sample=True, min_new_tokens=16, max_new_tokens=16)
            done += len(tokenizer.decode(made[0, ids.shape[1] :]).encode())
        return done

    def stepping(model: ByteModel) -> Callable[[int], int]:
        def run(seed: int) -> int:
            for prompt in prompts:
                rng, state = np.random.default_rng(seed), model.state(prompt)
                for _ in range(count):
                    law = state.law().p
                    state.push(bytes([int(rng.choice(256, p=law[:256] / law[:256].sum()))]))
            return count * len(prompts)

        return run

    def sampling(way: Callable[[bytes, int, int], bytes]) -> Callable[[int], int]:
        return lambda seed: sum(len(way(prompt, count, seed)) for prompt in prompts)

    ways = {
        "generate, token level": tokens,
        "ours, canonical, sample": sampling(bench.canonical.sample),
        "ours, all, sample": sampling(bench.beams["width 4"].sample),
        "ours, canonical, byte by byte": stepping(bench.canonical),
        "ours, all (width 4), byte by byte": stepping(bench.beams["width 4"]),
    }
    ways |= {f"genlm-bytes, {n}": sampling(p.sample) for n, p in bench.peers.items()}
    return _speed(ways, bench.now, rounds)


def _speed(ways: dict[str, Callable[[int], int]], now: Callable[[], float], rounds: int) -> Table:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(0)
    with no_collection():
        for seed in range(1, rounds + 1):
            for name in ways if seed % 2 else reversed(ways):
                begin = now()
                done = ways[name](seed)
                taken[name].append(1e6 * (now() - begin) / done)
    samples = {name: Samples(tuple(us)) for name, us in taken.items()}
    peer = samples["genlm-bytes, K = 5"]
    tokens = samples["generate, token level"]
    rows: list[list[Cell]] = [
        [name, 1e6 / us.median_us, str(ratio(peer, us)), str(ratio(tokens, us))]
        for name, us in samples.items()
    ]
    columns = ["method", "bytes a second", "over genlm-bytes, K = 5", "over generate"]
    return Table("Sampling, one text at a time", columns, rows)


def trie_table(clock: str, *, quick: bool) -> Table:
    """Masses of all next bytes of one row of logits."""
    size = 4000 if quick else 32_000
    tokenizer = wide_tokenizer(size)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    trie = sparse_trie(list(vocabulary.token_bytes))
    known = ByteSortedVocabulary(vocabulary.token_bytes, eos_ids=vocabulary.eos_ids)
    logits = (3 * np.random.default_rng(0).normal(size=(1, len(vocabulary)))).astype(np.float32)
    nodes, row = np.zeros(1, np.int64), torch.from_numpy(logits)[0]
    samples = take_turns(
        {
            "ours": lambda _: next_byte(logits, known, nodes),
            "sparse product": lambda _: trie.weight_sum(torch.softmax(row, -1)),
        },
        rounds=5 if quick else 25,
        block=2,
        clock=clock,
    )
    ours, theirs = samples["ours"], samples["sparse product"]
    rows: list[list[Cell]] = [
        ["ours, from logits", ours.median_us, "1"],
        ["genlm-bytes, sparse product", theirs.median_us, str(ratio(theirs, ours))],
    ]
    columns = ["method", "us a row", "over ours"]
    return Table(f"Token to byte masses, V = {len(vocabulary):,}, one row", columns, rows)


def _places(draw: random.Random) -> list[tuple[int, int]]:
    return [(i, draw.randrange(200)) for i in range(40)]


def _reported(model: ByteModel, text: bytes) -> tuple[float, int]:
    """Bits a byte, and how many tokens were read for it."""
    report = model.report(text)
    return report.bits_per_byte, report.rows


def _bits(log_p: Float) -> float:
    return float(-log_p.sum() / (len(log_p) * np.log(2.0)))


def _fine(rows: Sequence[list[Cell]]) -> list[list[Cell]]:
    """Bits with four digits behind the point."""
    return [[row[0], f"{row[1]:.4f}", *row[2:]] for row in rows]


def _divergence(p: Float, q: Float) -> float:
    """Jensen-Shannon, in bits."""
    middle, total = 0.5 * (p + q), 0.0
    for law in (p, q):
        some = law > 0
        total += 0.5 * float((law[some] * np.log2(law[some] / middle[some])).sum())
    return max(total, 0.0)


def main() -> None:
    """Run from the command line."""
    parser = arguments(__doc__)
    names = ("accuracy", "speed", "cuts", "bits", "masses")
    parser.add_argument("--table", choices=names, help="only this one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = names if options.table is None else (options.table,)
    show(list(_tables(wanted, options.clock, quick=options.quick)), as_json=options.json)


def _tables(wanted: Sequence[str], clock: str, *, quick: bool) -> Iterator[Table]:
    if "masses" in wanted:
        yield trie_table(clock, quick=quick)
    if set(wanted) == {"masses"}:
        return
    made = trained()
    host = TransformersHost(made.model, made.tokenizer)
    beams = {name: ByteModel(host, target="all", beam=beam) for name, beam in BEAMS.items()}
    peers = {f"K = {k}": PeerBytes(made.model, made.tokenizer, END, width=k) for k in WIDTHS}
    bench = Bench(made, ByteModel(host), beams, peers, CLOCKS[clock], quick)
    if "accuracy" in wanted:
        yield accuracy_table(bench)
    if "speed" in wanted:
        yield speed_table(bench, rounds=2 if quick else 3)
    if "cuts" in wanted:
        chosen = 10 if quick else 60
        yield cut_table(made, bench.canonical, beams["default"], peers["K = 5"], cuts=chosen)
    if "bits" in wanted:
        yield bits_table(bench)
    for peer in peers.values():
        peer.close()


if __name__ == "__main__":
    main()
