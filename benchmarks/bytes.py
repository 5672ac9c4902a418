"""Laws over bytes beside genlm-bytes 0.2.0: bits, accuracy, bytes a second, cuts inside tokens.

One model, one process, one thread; the peer without its idle timer, its trie made beforehand.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.bytes_bench import Bench, bench_of
from benchmarks.bytes_bits import bits_table
from benchmarks.bytes_cuts import cut_table
from benchmarks.bytes_model import trained, wide_tokenizer
from benchmarks.peer_bytes import sparse_trie
from benchmarks.report import Cell, Table, arguments, show
from benchmarks.taught_model import taught
from benchmarks.timing import Samples, no_collection, ratio, take_turns
from midstream.adapters.transformers import TransformersHost
from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.next_byte import next_byte
from midstream.middleware.bytes import Beam, ByteModel
from midstream.middleware.vocabulary import Vocabulary

Float = npt.NDArray[np.float64]

END = b"<eos>"
WIDTHS = (2, 5, 10)
LENGTH = 100


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
    names = ("accuracy", "speed", "cuts", "bits", "taught", "masses")
    parser.add_argument("--table", choices=names, help="only this one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = names if options.table is None else (options.table,)
    show(list(_tables(wanted, options.clock, quick=options.quick)), as_json=options.json)


def _tables(wanted: Sequence[str], clock: str, *, quick: bool) -> Iterator[Table]:
    if "masses" in wanted:
        yield trie_table(clock, quick=quick)
    if {"accuracy", "speed", "cuts", "bits"}.intersection(wanted):
        with bench_of(trained(), END, WIDTHS, clock, quick=quick) as bench:
            yield from _small_model(bench, wanted)
    if "taught" in wanted:
        made = taught()
        with bench_of(
            made, made.tokenizer.eos_token.encode(), WIDTHS[-1:], clock, quick=quick
        ) as bench:
            texts = [text.encode() for text in made.held_out[:: 8 if quick else 1]]
            yield bits_table(
                bench, texts, f"Held-out documents of the embedded model, {len(texts)}"
            )


def _small_model(bench: Bench, wanted: Sequence[str]) -> Iterator[Table]:
    if "accuracy" in wanted:
        yield accuracy_table(bench)
    if "speed" in wanted:
        yield speed_table(bench, rounds=2 if bench.quick else 3)
    if "cuts" in wanted:
        made, chosen = bench.made, 10 if bench.quick else 60
        ours = bench.canonical, bench.beams["default"]
        yield cut_table(made, *ours, bench.peers["K = 5"], cuts=chosen)
    if "bits" in wanted:
        texts = bench.excerpts(LENGTH)
        title = f"Held-out text, {len(texts)} files, {LENGTH} bytes of each"
        yield bits_table(bench, texts, title)


if __name__ == "__main__":
    main()
