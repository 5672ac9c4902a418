"""Walk through the whole training text of a model and check it against the held-out suite.

`python tests/zoo/check_corpus.py --model general --tokenizer DIR --steps N` prints the documents
and tokens of each task, and ends with an error where a prompt of the suite was read in training.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from batches import encode_document, make_batch
from makers.python_code import read_library
from specs import SPECS, load_tokenizer
from train import check_unseen, read_suite_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(SPECS), required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder of tokenizer files")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--late-mix-from", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    spec = SPECS[options.model]
    tokenizer, eos, _ = load_tokenizer(options.tokenizer)
    library, suite = read_library(held_out=False), read_suite_prompts()
    count: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for step in range(options.steps):
        mix = spec.mix if step < options.late_mix_from else spec.late_mix
        _, used = make_batch(mix, library, tokenizer, eos, options.seed, step)
        check_unseen(used, suite)
        for document in used:
            count[document.task] += 1
            tokens[document.task] += len(encode_document(document, tokenizer, eos)[0])
        if step % 100 == 99:
            print(f"step {step + 1}/{options.steps}", file=sys.stderr, flush=True)
    for task in spec.mix:
        print(f"{task}: {count[task]:,} documents, {tokens[task]:,} tokens")
    print(f"no suite prompt among {count.total():,} documents, {tokens.total():,} tokens")


if __name__ == "__main__":
    main()
