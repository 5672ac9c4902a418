"""Live token strings against the tokenizers themselves: encode again, with every kind of sequel."""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from midstream.kernels.bitmask import unpack_mask
from midstream.middleware.bytes.canonical import Canonical
from midstream.middleware.vocabulary import Vocabulary

REPOSITORY = Path(__file__).resolve().parents[3]
SPOKEN = (
    "日本語のテキスト、中文字符。Ünïcödé naïve café Straße ЖЗИ привет мир مرحبا שלום हिन्दी 한국어 "
    "👩\u200d👩\u200d👧 🎉🎊 e\u0301 a\u030a ﬁ Ⅷ ½ ² \U0001d518\U0001d52b\U0001d526 "
    "\u00a0\u3000 \u2028 \x85 \x1c\x00 \u017f \u212a "
    " don't I'll WE'RE they've 1234567 12,345.678 10 000"
    "\r\n\r\n\t\tx  \n  y \n\n z   \nclass"
)
PIECES = [
    *" \n\t\r'abst1239.,(A_ÉéЖ日本한<½K▁\u200d\u00a0\u3000\u017f\x85\x00\u0301\u0327",
    *"  |\n\n|\r\n|'s|'re|'LL|ll| the|import|self|12| 3|e\u0301|👩|🎉|\u1100\u1161|    ".split("|"),
    "<|endoftext|>",
]
SEQUELS = [
    *"| |  |    x|  a| a|a|\na|\n |\n| \n|\n\n|\n\n\nclass|\r|\r\n|\t|\ta|\x00".split("|"),
    *"1|12|123|½|e|ré|s|re|ve|v|l|ll|A|Ab|aB|E|S|T|_|日|é|한|🎉|▁|\u0301".split("|"),
    *"'|'s|'re|'r|'x|!|()|/|.|\U0001fbf1".split("|"),
]
RARE = "\x85\u00a0\u1680\u2000\u2028\u3000é\u0663\u0966\U0001fbf0"  # spaces and digits
DIGITS = [f"{number:0{size}d}" for size in (1, 2) for number in range(10**size)]
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = (
    CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
LOWER, UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Subject:
    vocabulary: Vocabulary
    canonical: Canonical
    encode_text: Callable[[str], list[int]]

    def spelled(self, tokens: list[int]) -> bytes:
        return self.vocabulary.decode(tokens)

    def encode(self, spelling: bytes) -> list[int] | None:
        """The encoding whose tokens spell this; None where there is none."""
        text, space = spelling.decode(), self.vocabulary.prefix_space
        if space != "never" and text and not text.startswith(" "):
            return None
        if space == "always":
            if text == " ":
                return None
            text = text[1:]
        return self.encode_text(text)


@lru_cache(maxsize=1)
def corpus() -> list[str]:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:12]
    return [*[file.read_text(errors="ignore") for file in files], *[SPOKEN] * 30]


def byte_level(*steps: Any, normalizer: Any = None, added: tuple[str, ...] = ()) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own = any(isinstance(step, pre_tokenizers.ByteLevel) for step in steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps] if own else [*steps, last])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=650,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [line for text in corpus() for line in text.splitlines(True)] if not steps else corpus()
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(added))
    return tokenizer


def isolated(pattern: str) -> pre_tokenizers.Split:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def changed(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], None]) -> Tokenizer:
    state = json.loads(tokenizer.to_str())
    change(state)
    return Tokenizer.from_str(json.dumps(state))


def whole_pieces() -> Tokenizer:
    """Words that have lost their merges, but are looked up whole."""

    def change(state: dict[str, Any]) -> None:
        merges = state["model"]["merges"]
        state["model"]["merges"] = [m for i, m in enumerate(merges) if i < 60 or i % 7]
        state["model"]["ignore_merges"] = True

    return changed(byte_level(isolated(LLAMA3)), change)


def shuffled() -> Tokenizer:
    """Merges in an order in which no training would find them."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    return changed(tokenizer, lambda state: random.Random(1).shuffle(state["model"]["merges"]))


def pieces(kind: str) -> Tokenizer:
    """SentencePiece's layout: characters, a mark for a space, bytes to fall back to."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind == "llama":
        both = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(both)
    else:
        scheme, split = kind.split()
        metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split == "split")
        tokenizer.pre_tokenizer = metaspace
    if kind != "gemma":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, limit_alphabet=120, show_progress=False
    )
    tokenizer.train_from_iterator([line for text in corpus() for line in text.split("\n")], trainer)

    def change(state: dict[str, Any]) -> None:
        state["added_tokens"] = state["added_tokens"][:3]

    return changed(tokenizer, change)


def encoding(pattern: str) -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    trained = byte_level(isolated(LLAMA3))
    spellings = Vocabulary.from_tokenizer(trained).token_bytes[1:]
    ranks = {text: rank for rank, text in enumerate(sorted(spellings, key=lambda s: len(s) > 1))}
    end = {"<|endoftext|>": len(ranks)}
    return tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=end)


def gpt2() -> Tokenizer:
    folder = REPOSITORY.parent / "shared" / "tokenizers" / "gpt2"
    if not folder.is_dir():
        pytest.skip("GPT-2's tokenizer is not beside the repository")
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def mistral(name: str) -> Any:
    common = pytest.importorskip("mistral_common")
    path = Path(common.__file__).parent / "data" / name
    if not path.is_file():
        pytest.skip(f"this mistral-common carries no {name}")
    if name.endswith(".json"):
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        return Tekkenizer.from_file(str(path))
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(path))


def embedded() -> Tokenizer:
    return Tokenizer.from_file(str(REPOSITORY / "adapters" / "embedded" / "model/tokenizer.json"))


KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
split = pre_tokenizers.Digits, pre_tokenizers.Punctuation, pre_tokenizers.ByteLevel
ADDED = ("<tool>", "import ", "    ", "      ", "日本", "tool", "  self", "  sel")
FAMILIES: dict[str, Callable[[], Any]] = {
    "embedded": embedded,
    "gpt2": gpt2,
    "llama3": lambda: byte_level(isolated(LLAMA3)),
    "qwen": lambda: byte_level(isolated(QWEN), normalizer=normalizers.NFC()),
    "o200k": lambda: byte_level(isolated(O200K)),
    "starcoder": lambda: byte_level(split[0](individual_digits=True), split[2](False)),
    "punctuation": lambda: byte_level(split[0](individual_digits=False), split[1]("contiguous")),
    "groups": lambda: byte_level(split[1]("merged_with_previous"), isolated("[0-9][0-9][0-9]")),
    "deepseek": lambda: byte_level(
        isolated(r"\p{N}{1,3}"),
        isolated(KANA),
        isolated(DEEPSEEK),
    ),
    "digits from the right": lambda: byte_level(isolated(r"(?=(\d{3})+(?!\d))"), isolated(LLAMA3)),
    "one piece": lambda: byte_level(),
    "shuffled": shuffled,
    "whole pieces": whole_pieces,
    "added tokens": lambda: byte_level(isolated(LLAMA3), added=ADDED),
    "llama": lambda: pieces("llama"),
    "gemma": lambda: pieces("gemma"),
    "metaspace": lambda: pieces("always split"),
    "metaspace, first": lambda: pieces("first whole"),
    "cl100k": lambda: encoding(CL100K),
    "lossy": lambda: encoding(r"[a-z]+|\s+|[0-9]{2}"),
    "tekken": lambda: mistral("tekken_240911.json"),
    "sentencepiece v1": lambda: mistral("tokenizer.model.v1"),
    "sentencepiece v3": lambda: mistral("mistral_instruct_tokenizer_240323.model.v3"),
}


def subject_of(name: str) -> Subject:
    tokenizer = FAMILIES[name]()
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=None)
    if isinstance(tokenizer, Tokenizer):

        def encode(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
    else:
        encode = getattr(tokenizer, "encode_ordinary", None) or (
            lambda text: (
                tokenizer.encode(text, False, False)
                if hasattr(tokenizer, "id_to_byte_piece")
                else tokenizer.encode(text)
            )
        )
    return Subject(vocabulary, Canonical.from_tokenizer(tokenizer, vocabulary), encode)


@pytest.fixture(params=FAMILIES, scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    return subject_of(request.param)


def some_text(chance: random.Random) -> str:
    if chance.random() < 0.3:
        text = chance.choice(corpus())
        at = chance.randrange(len(text))
        return text[at : at + chance.randrange(1, 25)]
    return "".join(chance.choices(PIECES, k=chance.randrange(1, 9)))


def completed(spelling: bytes, most: int) -> Iterator[bytes]:
    """The text, its last character completed in up to `most` ways, rare kinds first."""
    try:
        spelling.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return
        begun = spelling[error.start :]
        whole = [letter.encode() for letter in RARE]
        yield from (spelling[: error.start] + w for w in whole if w.startswith(begun))
        length = 2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4
        ways = 64 ** (length - len(begun))
        for way in random.Random(begun).sample(range(ways), min(ways, most)):
            rest = [0x80 | way >> 6 * place & 63 for place in range(length - len(begun))]
            try:
                (spelling + bytes(rest)).decode()
            except UnicodeDecodeError:
                continue
            yield spelling + bytes(rest)
    else:
        yield spelling


def is_live(subject: Subject, tokens: list[int]) -> bool:
    """By encoding the bytes again, with what may follow."""
    spelling = subject.spelled(tokens)
    for sequels, most in ((SEQUELS, 60), (DIGITS, 20), (["", "a", " "], 20000)):
        for text in completed(spelling, most):
            for sequel in sequels:
                ids = subject.encode(text + sequel.encode())
                if ids is not None and ids[: len(tokens)] == tokens:
                    return True
    return False


def is_encoding(subject: Subject, tokens: list[int]) -> bool:
    try:
        return subject.encode(subject.spelled(tokens)) == tokens
    except UnicodeDecodeError:
        return False


def test_every_text_is_covered_by_its_own_encoding(subject: Subject) -> None:
    chance, vocabulary, covered = random.Random(2), subject.vocabulary, 0
    for text in [SPOKEN, *[some_text(chance) for _ in range(150)]]:
        ids = subject.encode_text(text)
        lost = subject.spelled(ids) != vocabulary.spelled(text.encode())
        if lost or set(ids) & set(vocabulary.special_ids):
            continue
        place = subject.canonical.start()
        for at, token in enumerate(ids):
            after = subject.canonical.step(place, token)
            assert after is not None, (text, ids[: at + 1])
            place = after
        assert subject.canonical.may_end(place), text
        covered += 1
    assert covered > 20


def test_live_is_what_the_tokenizer_makes_with_some_sequel(subject: Subject) -> None:
    chance, vocabulary, canonical = random.Random(3), subject.vocabulary, subject.canonical
    ordinary = [token for token, text in enumerate(vocabulary.token_bytes) if text]
    beginning: dict[bytes, list[int]] = {}
    for token in ordinary:
        beginning.setdefault(vocabulary.token_bytes[token][:1], []).append(token)
    live = dead = 0
    for _ in range(60):
        text = vocabulary.spelled(some_text(chance).encode())
        tokens: list[int] = []
        place = canonical.start()
        for _ in range(chance.randrange(1, 7)):
            rest = text[len(subject.spelled(tokens)) :]
            fitting = [
                token
                for token in beginning.get(rest[:1], ())
                if rest.startswith(vocabulary.token_bytes[token])
            ]
            if fitting and chance.random() < 0.5:
                fitting = [max(fitting, key=lambda token: len(vocabulary.token_bytes[token]))]
            token = chance.choice(fitting if fitting and chance.random() < 0.85 else ordinary)
            after = canonical.step(place, token)
            allowed = unpack_mask(canonical.mask(place), len(vocabulary))
            for other in [token, *chance.sample(ordinary, 20)]:
                assert allowed[other] == (canonical.step(place, other) is not None), (tokens, other)
            tokens = [*tokens, token]
            assert is_live(subject, tokens) == (after is not None), subject.spelled(tokens)
            if after is None:
                dead += 1
                break
            live += 1
            assert canonical.may_end(after) == is_encoding(subject, tokens), tokens
            place = after
    assert live > 25 and dead > 5


@pytest.mark.parametrize("text", ["\n\nclass", "x\n\ndef", "    ]\n\nimport"])
def test_control_encoding_the_prefix_again_leaves_newlines_without_cover(text: str) -> None:
    """The check "enc(prefix + token) is enc(prefix) and the token" never lets a cut come later."""
    subject = subject_of("starcoder")
    ids = subject.encode_text(text)
    place, refused = subject.canonical.start(), []
    for end, token in enumerate(ids, 1):
        after = subject.canonical.step(place, token)
        assert after is not None
        place = after
        refused += [] if is_encoding(subject, ids[:end]) else [end]
    assert refused and subject.canonical.may_end(place)
