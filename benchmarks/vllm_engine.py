"""What strategies cost inside a vLLM engine, beside the same engine without them.

Run it where vLLM is: `.venv-vllm/bin/python -m benchmarks.vllm_engine`. Every ratio is of pairs of
rounds that ran next to each other; the median pair, and a 95 % interval of the median.

The engine works in one thread unless OMP_NUM_THREADS says more: with as many as there are cores,
whatever else runs stops all of them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
)

import base64
import json
import random
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from benchmarks.report import Table, arguments, show
from benchmarks.timing import Samples, take_turns

SEQUENCES = 16
REQUESTS = 3 * SEQUENCES
"""Of a round: one that ends makes room for the next, so that sequences stay as many as said."""
BLOCK_SIZE = 32
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
EVERY = 16
FREE = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 60, "maxLength": 400}},
    "required": ["text"],
    "additionalProperties": False,
}
PROCESSOR = "midstream.adapters.vllm:ConstrainedSampling"
EXTENSION = "midstream.adapters.vllm.WeightsExtension"


def engine(model: Path, *, ours: bool, **options: Any) -> Any:
    """An engine in this process."""
    from vllm import LLM

    added = {"logits_processors": [PROCESSOR], "worker_extension_cls": EXTENSION} if ours else {}
    settings: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "block_size": BLOCK_SIZE,
        "max_num_seqs": SEQUENCES,
        "distributed_executor_backend": "uni",
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        # The same language as ours: no whitespace between tokens of JSON.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        **added,
    }
    return LLM(str(model), **{**settings, **options})


def interval(theirs: Samples, ours: Samples) -> tuple[float, float, float]:
    """The median of theirs over ours, and 95 % of the medians of resampled pairs."""
    pairs = [t / o for t, o in zip(theirs.us, ours.us, strict=True)]
    generator = random.Random(0)
    medians = sorted(_median(generator.choices(pairs, k=len(pairs))) for _ in range(2000))
    return _median(pairs), medians[50], medians[1949]


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _row(name: str, theirs: Samples, ours: Samples, target: str) -> list[Any]:
    median, low, high = interval(theirs, ours)
    each = f"{median:.3f} ({low:.3f} to {high:.3f})"
    return [name, f"{ours.median_us / 1e3:.1f}", f"{theirs.median_us / 1e3:.1f}", each, target]


def unused(model: Path, rounds: int, clock: str) -> list[list[Any]]:
    """Requests without a strategy, with our processor loaded and without it."""
    from vllm import SamplingParams

    engines = {"with": engine(model, ours=True), "without": engine(model, ours=False)}

    def work(name: str) -> Callable[[int], object]:
        def run(seed: int) -> object:
            prompts = [f"Round {seed}, guest {i}:\n" for i in range(SEQUENCES)]
            params = SamplingParams(max_tokens=64, ignore_eos=True, seed=seed)
            return engines[name].generate(prompts, params, use_tqdm=False)

        return run

    taken = take_turns({name: work(name) for name in engines}, rounds=rounds, clock=clock)
    return [_row("loaded and unused", taken["without"], taken["with"], "0.98")]


def structured(
    llm: Any, name: str, schema: Any, rounds: int, tokens: int, clock: str
) -> list[list[Any]]:
    """A schema on every request: `mask` against the engine's own structured outputs."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    made = {"ours": 0, "theirs": 0}

    def run(side: str, seed: int) -> None:
        prompts = [f"Record {seed}, {i}:\n" for i in range(REQUESTS)]
        if side == "ours":
            strategy = {"constraint": {"json_schema": schema}, "sampler": "mask", "seed": seed}
            each = [
                SamplingParams(max_tokens=tokens, extra_args={"midstream": {"strategy": strategy}})
                for _ in prompts
            ]
            outputs = llm.generate(prompts, each, use_tqdm=False)
        else:
            # No seed: with one for all of them they draw alike, are of one length, and fill the
            # batch to the end; and each that has one is drawn by itself, which takes longer.
            rules = StructuredOutputsParams(json=schema)
            params = SamplingParams(max_tokens=tokens, structured_outputs=rules)
            outputs = llm.generate(prompts, params, use_tqdm=False)
        made[side] += sum(len(o.outputs[0].token_ids) for o in outputs)

    def both(side: str) -> Callable[[int], object]:
        return lambda seed: run(side, seed)

    taken = take_turns({"ours": both("ours"), "theirs": both("theirs")}, rounds=rounds, clock=clock)
    # The two draw other texts: time a token is what can be compared.
    per = {side: made[side] / (rounds + 2) for side in made}
    scaled = {side: Samples(tuple(us / per[side] for us in taken[side].us)) for side in taken}
    return [_row(name, scaled["theirs"], scaled["ours"], "0.9")]


def particles(llm: Any, rounds: int, clock: str) -> list[list[Any]]:
    """Eight particles with resampling, against eight requests that know nothing of each other."""
    from vllm import SamplingParams

    from midstream.adapters.vllm import VllmHost
    from midstream.middleware.segments import run_segments
    from midstream.middleware.strategy import Strategy

    host = VllmHost(llm)
    read = _reads(llm.llm_engine)
    constraint = {"regex": "([A-Z][a-z ]{3,40}[.] )+"}
    prompt = llm.get_tokenizer()("A story of guests and cities:\n").input_ids
    assert len(prompt) % EVERY
    resamplings: list[int] = []

    def smc(seed: int) -> None:
        strategy = Strategy(
            constraint=constraint,
            smc={"particles": 8, "resample_every": EVERY, "ess_threshold": 0.9},
            seed=seed,
            limits={"max_new_tokens": 128},
        )
        read.clear()
        result = run_segments(host, prompt, strategy)
        assert all(cached == length // BLOCK_SIZE * BLOCK_SIZE for length, cached in read.values())
        identity = tuple(range(8))
        resamplings.append(sum(a != identity for a in result.ancestry))

    def independent(seed: int) -> None:
        asked = {"strategy": {"constraint": constraint, "seed": seed}}
        params = SamplingParams(max_tokens=128, n=8, extra_args={"midstream": asked})
        llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)

    taken = take_turns({"smc": smc, "independent": independent}, rounds=rounds, clock=clock)
    assert min(resamplings) >= 4
    median, low, high = interval(taken["smc"], taken["independent"])
    each = f"{median:.3f} ({low:.3f} to {high:.3f})"
    name = f"8 particles, 128 tokens, every 16 (resamplings: {min(resamplings)} or more)"
    smc_ms, other_ms = (taken[key].median_us / 1e3 for key in ("smc", "independent"))
    return [[name, f"{smc_ms:.1f}", f"{other_ms:.1f}", each, "1.3 at most"]]


def _reads(engine: Any) -> dict[str, tuple[int, int]]:
    """Of each request that ends from now on: the length of its prompt, and how much was cached."""
    seen: dict[str, tuple[int, int]] = {}
    step = engine.step

    def noting() -> Any:
        outputs = step()
        for output in outputs:
            if output.finished:
                seen[output.request_id] = len(output.prompt_token_ids), output.num_cached_tokens
        return outputs

    engine.step = noting
    return seen


def wide_model(folder: Path) -> Path:
    """A random Llama of two layers with the 131,072 tokens of mistral-common's Tekken."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    data = json.loads((files("mistral_common") / "data" / "tekken_240911.json").read_text())
    special = data["config"]["default_num_special_tokens"]
    size = data["config"]["default_vocab_size"]
    shown = _byte_alphabet()
    vocabulary = {f"<special_{i}>": i for i in range(special)}
    for entry in data["vocab"][: size - special]:
        text = "".join(shown[byte] for byte in base64.b64decode(entry["token_bytes"]))
        vocabulary.setdefault(text, special + entry["rank"])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<special_{i}>" for i in range(special)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<special_2>", bos_token="<special_1>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level tokenizer."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    for offset, byte in enumerate(b for b in range(256) if b not in table):
        table[byte] = chr(256 + offset)
    return [table[byte] for byte in range(256)]


def main() -> None:
    """Run from the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="pairs a row")
    told = "cpu: that of the thread that decodes, which leaves out what other processes took"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=told)
    options = parser.parse_args()
    from midstream.adapters.embedded import embedded_model_path

    rounds, clock = 3 if options.quick else options.rounds, options.clock
    rows = unused(embedded_model_path(), rounds, clock)
    llm = engine(embedded_model_path(), ours=True)
    rows += structured(llm, "JSON Schema, V = 4,096", SCHEMA, rounds, 64, clock)
    rows += structured(llm, "free strings, V = 4,096", FREE, rounds, 64, clock)
    rows += particles(llm, rounds, clock)
    with tempfile.TemporaryDirectory() as folder:
        wide = engine(wide_model(Path(folder)), ours=True)
        rows += structured(wide, "JSON Schema, V = 131,072", SCHEMA, rounds, 48, clock)
        rows += structured(wide, "free strings, V = 131,072", FREE, rounds, 48, clock)
    columns = ["what", "ours ms", "without or the engine's own ms", "ratio (95 %)", "target"]
    show([Table("vLLM on the CPU, 16 sequences", columns, rows)], as_json=options.json)


if __name__ == "__main__":
    main()
