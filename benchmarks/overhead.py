"""Overhead for each generated token beyond the model's forward pass, with 10 particles.

(time of a run - time in the model's forward) / tokens generated, over all particles, on a tiny
random model, so that the overhead is what there is to see.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable

import torch

from benchmarks.peer import PeerModel
from benchmarks.report import Cell, Table, arguments, show
from benchmarks.timing import CLOCKS, Samples, no_collection, ratio
from benchmarks.tiny_model import PROMPT, ForwardTimer, make_model, make_tokenizer
from midstream.adapters.transformers import TransformersHost
from midstream.middleware import smc
from midstream.middleware.constraints.regex import Regex
from midstream.middleware.sampling import AWRS, Auto, Sampler

SIZE = 1000
PARTICLES = 10
TOKENS = 24
PATTERNS = {
    "tight: fixed-width date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "loose: words": r"[a-zA-Z ]+[.]",
}
OURS: dict[str, Sampler] = {"ours, auto (mask)": Auto(), "ours, AWRS (4 accepts)": AWRS()}
PEERS = {
    "genlm-control, exact mask": 0,
    "genlm-control, AWRS (2 accepts)": 2,
    "genlm-control, AWRS (4 accepts)": 4,
}

Run = Callable[[int], int]
"""One run with a seed: how many tokens were generated."""


def ours(host: TransformersHost, prompt_ids: list[int], pattern: str, sampler: Sampler) -> Run:
    """Our SMC on the model."""
    matcher = Regex(pattern).compile(host.vocabulary)

    def run(seed: int) -> int:
        result = smc.run(
            host.start([prompt_ids]),
            matcher,
            particles=PARTICLES,
            max_new_tokens=TOKENS,
            seed=seed,
            sampler=sampler,
        )
        return sum(len(particle.token_ids) for particle in result.particles)

    return run


def theirs(model: PeerModel, loop: asyncio.AbstractEventLoop, pattern: str, accepts: int) -> Run:
    """The peer's SMC on the same model; `accepts` 0 is the exact mask."""
    sampler = model.awrs(pattern, accepts=accepts) if accepts else model.mask(pattern)

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        model.forget()
        work = sampler.smc(n_particles=PARTICLES, ess_threshold=0.5, max_tokens=TOKENS)
        found = loop.run_until_complete(work)
        return sum(len(context) for context in found.contexts)

    return run


def measure(
    runs: dict[str, Run], timer: ForwardTimer, now: Callable[[], float], *, rounds: int
) -> tuple[dict[str, Samples], dict[str, float]]:
    """Overhead for a token in microseconds, and mean tokens a run, of methods that take turns."""
    for run in runs.values():
        run(0)
    overhead: dict[str, list[float]] = {name: [] for name in runs}
    tokens: dict[str, list[int]] = {name: [] for name in runs}
    with no_collection():
        for seed in range(1, rounds + 1):
            for name in runs if seed % 2 else reversed(runs):
                begin, forward = now(), timer.seconds
                count = runs[name](seed)
                spent = (now() - begin) - (timer.seconds - forward)
                overhead[name].append(1e6 * spent / count)
                tokens[name].append(count)
    samples = {name: Samples(tuple(us)) for name, us in overhead.items()}
    return samples, {name: statistics.fmean(counts) for name, counts in tokens.items()}


def tables(*, rounds: int, clock: str, timeout: float) -> list[Table]:
    """One table a pattern."""
    tokenizer = make_tokenizer(SIZE)
    model = make_model(SIZE, eos_id=tokenizer.eos_token_id)
    now = CLOCKS[clock]
    timer = ForwardTimer(model, now)
    prompt_ids = tokenizer.encode(PROMPT)
    host = TransformersHost(model, tokenizer)
    peer = PeerModel(model, tokenizer, prompt_ids, batch_size=PARTICLES, timeout=timeout)
    loop = asyncio.new_event_loop()
    found = []
    for name, pattern in PATTERNS.items():
        runs = {n: ours(host, prompt_ids, pattern, s) for n, s in OURS.items()}
        runs |= {n: theirs(peer, loop, pattern, accepts) for n, accepts in PEERS.items()}
        samples, tokens = measure(runs, timer, now, rounds=rounds)
        found.append(_table(name, samples, tokens))
    loop.close()
    return found


def _table(name: str, samples: dict[str, Samples], tokens: dict[str, float]) -> Table:
    auto, awrs = (samples[name] for name in OURS)
    rows: list[list[Cell]] = [
        [method, us.median_us, tokens[method], str(ratio(us, auto)), str(ratio(us, awrs))]
        for method, us in samples.items()
    ]
    columns = ["method", "overhead us a token", "tokens a run", "over our auto", "over our AWRS"]
    return Table(f"Overhead, {PARTICLES} particles, V = {SIZE}, {name}", columns, rows)


def main() -> None:
    """Run from the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="runs of each method, one a seed")
    waits = "seconds that the peer's backend waits for more queries (its default is 0.02)"
    parser.add_argument("--peer-timeout", type=float, default=0.0, help=waits)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if options.quick else options.rounds
    found = tables(rounds=rounds, clock=options.clock, timeout=options.peer_timeout)
    show(found, as_json=options.json)


if __name__ == "__main__":
    main()
