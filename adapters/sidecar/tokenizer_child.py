"""Reads one tokenizer.json in a process of its own, by `python -m` this module.

Nothing in the format bounds what loading takes: forty normalisers that double a text make a
terabyte of one letter. So it is done here, under limits of the operating system, and only the table
of bytes goes back.

Standard input: a line of JSON ({"seconds", "memory_bytes", "eos_ids"}), then the text. Standard
output: a line of JSON, {"error": [argument, got, accepted]} or {"lengths", "special_ids",
"eos_ids", "prefix_space"}, and then all tokens' bytes.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from midstream.middleware.errors import VocabularyError

WANTED = "the text of a tokenizer.json"


def main() -> None:
    """Answer the one request on standard input."""
    order = json.loads(sys.stdin.buffer.readline())
    seconds, memory = order["seconds"], order["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        header, data = _table(sys.stdin.buffer.read(), order["eos_ids"])
    except VocabularyError as error:
        got = error.got if isinstance(error.got, str) else repr(error.got)
        header, data = {"error": [error.argument, got, error.accepted]}, b""
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + data)


def _table(text: bytes, eos_ids: list[int]) -> tuple[dict[str, Any], bytes]:
    from tokenizers import Tokenizer

    from midstream.middleware.vocabulary import Vocabulary

    try:
        tokenizer = Tokenizer.from_str(text.decode())
    except Exception as error:  # the extension module raises bare Exception
        raise VocabularyError("tokenizer_json", f"text that is none ({error})", WANTED) from error
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=eos_ids or None)
    header = {
        "lengths": [len(spelling) for spelling in vocabulary.token_bytes],
        "special_ids": vocabulary.special_ids,
        "eos_ids": vocabulary.eos_ids,
        "prefix_space": vocabulary.prefix_space,
    }
    return header, b"".join(vocabulary.token_bytes)


if __name__ == "__main__":
    main()
