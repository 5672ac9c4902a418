"""Masked decoding and SMC against the exact conditional law, on the embedded model.

The constraint is finite, and the exact law comes from walking every tokenization of every text that
it allows, so nothing is estimated on that side: P(text), what token masking draws instead, and the
mass Z of the constraint. Then the distance of SMC's posterior for growing numbers of particles, and
the mean of its evidence over Z.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

import numpy as np

from midstream.adapters.embedded import embedded_model_path
from midstream.kernels.bitmask import mask_words, unpack_mask
from midstream.middleware import smc
from midstream.middleware.constraints import Regex
from midstream.middleware.host import logits_on_host
from midstream.middleware.matcher import Matcher
from midstream.middleware.random import sequence_of

PROMPT = "Guest 2179 picks a city:\n"
PATTERN = "San (Antonio|Marino)|Rome|Porto"
NEGLIGIBLE = -32.0
"""Prefixes of a log probability below this are not walked; what they hold is told as left out."""

Laws = tuple[dict[str, float], dict[str, float], float]


def exact_laws(host: Any, prompt: list[int], matcher: Matcher) -> Laws:
    """P(text) and the masked law of every text, and the mass that was left out."""
    vocabulary = matcher.vocabulary
    truth: dict[str, float] = {}
    masked: dict[str, float] = {}
    left_out = 0.0
    rows = host.start([prompt])
    nodes = [(matcher.start(), b"", 0.0, 0.0)]  # state, text, log p, log p under masking
    while nodes:
        logits = logits_on_host(rows.logits).astype(np.float64)
        parents, tokens, children = [], [], []
        for row, (state, text, log_p, log_masked) in enumerate(nodes):
            bits = np.empty(mask_words(logits.shape[1]), np.uint32)
            matcher.mask(state, bits)
            allowed = np.flatnonzero(unpack_mask(bits, logits.shape[1]))
            law = logits[row] - np.logaddexp.reduce(logits[row])
            log_z = np.logaddexp.reduce(law[allowed])
            for token in allowed.tolist():
                here, local = log_p + law[token], log_masked + law[token] - log_z
                if token in vocabulary.eos_ids:
                    name = text.decode()
                    truth[name] = truth.get(name, 0.0) + math.exp(here)
                    masked[name] = masked.get(name, 0.0) + math.exp(local)
                elif max(here, local) < NEGLIGIBLE:
                    left_out += math.exp(max(here, local))
                else:
                    parents.append(row)
                    tokens.append(token)
                    grown = text + vocabulary.token_bytes[token]
                    children.append((matcher.advance(state, token), grown, here, local))
        nodes = children
        if nodes:
            rows = rows.advance(parents, tokens)
    return truth, masked, left_out


def distance(law: dict[str, float], exact: dict[str, float]) -> float:
    """Total variation."""
    return 0.5 * sum(abs(law.get(text, 0.0) - exact.get(text, 0.0)) for text in {*law, *exact})


def measure(prompt: str, pattern: str, particles: list[int], seeds: int) -> dict[str, Any]:
    """All numbers of the page."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from midstream.adapters.transformers import TransformersHost

    folder = embedded_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    host = TransformersHost(AutoModelForCausalLM.from_pretrained(folder).float(), tokenizer)
    ids = tokenizer(prompt).input_ids
    matcher = Regex(pattern).compile(host.vocabulary)
    truth, masked, left_out = exact_laws(host, ids, matcher)
    mass = sum(truth.values())
    conditional = {text: p / mass for text, p in truth.items()}
    rows = []
    for count in particles:
        mean_posterior = dict.fromkeys(conditional, 0.0)
        distances, evidences = [], []
        for seed in range(seeds):
            result = smc.run(
                host.start([ids]),
                matcher,
                particles=count,
                max_new_tokens=24,
                seed=seed,
                sequence=sequence_of(ids),
            )
            posterior = result.posterior()
            for text, share in posterior.items():
                mean_posterior[text] += share / seeds
            distances.append(distance(posterior, conditional))
            evidences.append(math.exp(result.log_evidence) / mass)
        error = float(np.std(evidences) / math.sqrt(seeds))
        rows.append((count, float(np.mean(distances)), float(np.mean(evidences)), error))
    return {
        "prompt": prompt,
        "pattern": pattern,
        "mass": mass,
        "left_out": left_out,
        "conditional": conditional,
        "masked": masked,
        "masked_distance": distance(masked, conditional),
        "smc": rows,
        "mean_posterior": mean_posterior,
        "seeds": seeds,
    }


def main() -> int:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--regex", default=PATTERN, help="a pattern of finitely many texts")
    parser.add_argument("--particles", type=int, nargs="+", default=[1, 5, 20, 100, 400])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = measure(options.prompt, options.regex, options.particles, options.seeds)
    if options.json:
        print(json.dumps(told))
        return 0
    print(f"{told['prompt']!r} under {told['pattern']!r}")
    print(f"Z = {told['mass']:.6g}, left out below {told['left_out']:.1e}\n")
    most = told["smc"][-1][0]
    print(f"| text | exact conditional law | masked decoding | mean posterior, {most} particles |")
    print("|---|---|---|---|")
    for text, p in sorted(told["conditional"].items(), key=lambda item: -item[1]):
        found = told["mean_posterior"][text]
        print(f"| {text} | {p:.4f} | {told['masked'][text]:.4f} | {found:.4f} |")
    distant = told["masked_distance"]
    print(f"\nmasked decoding: total variation {distant:.4f} at any number of samples\n")
    print("| particles | total variation of the posterior | mean evidence / Z | standard error |")
    print("|---|---|---|---|")
    for count, far, ratio, error in told["smc"]:
        print(f"| {count} | {far:.4f} | {ratio:.4f} | {error:.4f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
