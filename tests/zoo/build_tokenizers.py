"""Train the zoo's two tokenizers on a sample of the corpus and write them as plain files.

`python tests/zoo/build_tokenizers.py --output DIR` writes DIR/byte_level and DIR/sentencepiece.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from corpus import GENERAL_MIX, SECOND_MIX, documents
from makers.python_code import Library, read_library
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

# Llama-3's split of words, with every digit on its own.
_BYTE_LEVEL_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Pieces never cross words, digits or newlines; a leading space belongs to its word.
_SENTENCEPIECE_SPLIT = r"▁?\p{L}+|▁?[^\p{L}\p{N}▁\n]+|\p{N}|▁+|\n"


def sample_texts(
    mix: Mapping[str, float], library: Library, seed: int, count: int
) -> Iterator[str]:
    """The first documents of a corpus, prompt and answer joined."""
    for document in islice(documents(mix, library, Random(f"tokenizer:{seed}")), count):
        yield document.prompt + document.answer


def build_byte_level(texts: Iterator[str], size: int) -> Tokenizer:
    """Byte-level BPE: every byte has a token, no normaliser, one end-of-text and one pad token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_BYTE_LEVEL_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_sentencepiece(texts: Iterator[str], size: int) -> Tokenizer:
    """BPE with byte fallback in Llama-2's order: specials, bytes, merged pieces, characters."""
    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(BPE())
    learner.normalizer = marks
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(_SENTENCEPIECE_SPLIT), "isolated")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(
        vocab_size=size - len(special) + 1, limit_alphabet=160, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learned: dict[str, Any] = json.loads(learner.to_str())["model"]
    # A newline has no piece: it is written by its byte, as in Llama-2.
    pieces = [piece for piece in learned["vocab"] if piece != "\n"]
    characters = [piece for piece in pieces if len(piece) == 1]
    merged = [piece for piece in pieces if len(piece) > 1]
    vocab = {piece: index for index, piece in enumerate(special + merged + characters)}
    tokenizer = Tokenizer(
        BPE(
            vocab=vocab,
            merges=[(left, right) for left, right in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = marks
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def add_bos(tokenizer: Tokenizer) -> None:
    """Put <s> before every text, as Llama-2 does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A",
        pair="<s> $A <s> $B",
        special_tokens=[("<s>", 1)],
    )


def write(tokenizer: Tokenizer, folder: Path, config: Mapping[str, object]) -> None:
    """tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    common = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    text = json.dumps({**common, **config}, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--byte-level-size", type=int, default=4096)
    parser.add_argument("--sentencepiece-size", type=int, default=3000)
    options = parser.parse_args()
    library = read_library(held_out=False)
    byte_level = build_byte_level(
        sample_texts(GENERAL_MIX, library, options.seed, options.documents),
        options.byte_level_size,
    )
    write(
        byte_level,
        options.output / "byte_level",
        {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"},
    )
    sentencepiece = build_sentencepiece(
        sample_texts(SECOND_MIX, library, options.seed, options.documents),
        options.sentencepiece_size,
    )
    add_bos(sentencepiece)
    write(
        sentencepiece,
        options.output / "sentencepiece",
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
            "add_bos_token": True,
        },
    )
    for name in ("byte_level", "sentencepiece"):
        built = Tokenizer.from_file(str(options.output / name / "tokenizer.json"))
        print(f"{name}: {built.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
