"""The tokens of any encoding spell the bytes of the text, for each family and real tokenizer.

Real ones are GPT-2's, those that mistral-common carries and the zoo's; one is skipped where absent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer

from midstream.middleware.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
GPT2 = ROOT.parent / "shared" / "tokenizers" / "gpt2"
ZOO = [
    path.parent
    for path in sorted(ROOT.glob("adapters/embedded/model/**/tokenizer.json"))
    + sorted(ROOT.glob("tests/zoo/models/**/tokenizer.json"))
]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEXTS = [
    "",
    "a",
    " a",
    "  a  ",
    " ",
    "\n",
    "\n\n",
    "\n\nclass A:\n    pass\n\n\ndef f():\n\treturn 1\n",
    "\r\n\r\n \t \x0b\x0c\x85\u2028\u2029\n \n",
    "".join(map(chr, range(0x20))) + "\x7f",
    "".join(map(chr, range(0x80, 0x100))),
    "The quick brown fox's \"jump\", isn't it?",
    "0123456789" * 7 + " 3.14159265358979 1,000,000 1e-300 0x1F",
    "Grüße aus Köln, Straße, naïve café, Ærøskøbing, Łódź, İstanbul, ﬁﬂ, e\u0301 vs \u00e9",
    "Съешь ещё этих мягких французских булок, да выпей чаю",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "敏捷的棕色狐狸跳过懒狗。素早い茶色の狐。빠른 갈색 여우",
    "نص حكيم له سر قاطع وذو شأن عظيم דג סקרן שט בים",
    "ऋषियों को सताने वाले दुष्ट राक्षसों தமிழ் ภาษาไทย አማርኛ ქართული",
    "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇪🇺 👍🏽 ☃️ 🧑\u200d🚀 1️⃣",
    "\U0001d518\U0001d52b 𐍈 \U0010ffff \ufffd \ufeffbom \u200b \u00ad \u00a0 \u3000",
    '{"id": 1, "tags": ["a", "b\\n"], "nested": {"x": null, "y": [1.5e3, true]}}',
    "SELECT name, SUM(x) FROM t WHERE y <> 'it''s' GROUP BY name; -- comment",
    "for (int i = 0; i < n; ++i) { a[i] ^= b[i] << 3; }\t// <0x0A> Ġ Ċ é Ã",
    "CC(=O)OC1=CC=CC=C1C(=O)O \\frac{a}{b} $x_i^2$ https://example.org/?q=a%20b#c",
    "[INST] <tag> </tag> | <| |> ```python\nprint('x')\n```",
]
ANY_TEXT = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from(" \n\t'\"{}0123456789aeéßя中👩\u200d<>|x\x00"),
    max_size=40,
)
SPACE_MARK = "\u2581"


@dataclass(frozen=True)
class Case:
    """A vocabulary beside the encoder whose tokens it describes."""

    vocabulary: Vocabulary
    encode: Callable[[str], Iterable[int]]
    lost: tuple[str, ...] = ()  # text that the tokenizer itself takes for something else

    def misspelled(self, text: str) -> bool:
        for confused in self.lost:
            text = text.replace(confused, "_")
        tokens = list(self.encode(text))
        return self.vocabulary.decode(tokens) != self.vocabulary.spelled(text.encode())


def case_of(tokenizer: Tokenizer, lost: tuple[str, ...] = (), **options: Any) -> Case:
    return Case(
        Vocabulary.from_tokenizer(tokenizer, **options),
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        lost,
    )


def gpt2(add_prefix_space: bool = False) -> Case:
    if not GPT2.is_dir():
        pytest.skip(f"no {GPT2}")
    tokenizer = Tokenizer(BPE.from_file(str(GPT2 / "vocab.json"), str(GPT2 / "merges.txt")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    return case_of(tokenizer)


def llama3(normalizer: Any = None, ignore_merges: bool = True) -> Case:
    """Split by Llama 3's expression, then bytes; whole words go before merges."""
    tokenizer = Tokenizer(BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = BpeTrainer(
        vocab_size=800,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    return case_of(tokenizer, eos_ids=[tokenizer.token_to_id("<|end_of_text|>")])


def llama2(layout: str) -> Case:
    """SentencePiece's layout in `tokenizers`: bytes as pieces, spaces as marks, one space added."""
    marks = normalizers.Replace(" ", SPACE_MARK)
    learner = Tokenizer(BPE())
    learner.normalizer = marks
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{SPACE_MARK}?\p{{L}}+|."), "isolated")
    trainer = BpeTrainer(vocab_size=500, limit_alphabet=120, show_progress=False)
    learner.train_from_iterator(TEXTS * 3, trainer)
    learned = learner.get_vocab()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*special, *sorted(learned.keys() - {"\n"}, key=lambda piece: learned[piece])]
    model = BPE(
        vocab={piece: token for token, piece in enumerate(pieces)},
        merges=[],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    if layout == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), marks])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=layout, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE_MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return case_of(tokenizer, lost=(SPACE_MARK,))


def unigram_with_byte_fallback() -> Case:
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE_MARK, "the", "e"]
    tokenizer = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    # This model alone finds its byte pieces in the text: written "<0x0A>", a newline.
    return case_of(tokenizer, lost=(SPACE_MARK, "<0x"))


def sentencepiece_trained(model_type: str, dummy_prefix: bool) -> Case:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.splitlines() if line] * 3),
        model_writer=model,
        model_type=model_type,
        vocab_size=800,
        character_coverage=0.98,
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<sep>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return Case(Vocabulary.from_tokenizer(processor), processor.encode, (SPACE_MARK,))


def tiktoken_small() -> Case:
    import tiktoken

    merged = [b"th", b"the", b" the", b"\n\n", "é".encode(), b"  ", b"    ", b"123", b"12"]
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks.update({spelling: 256 + rank for rank, spelling in enumerate(merged)})
    encoding = tiktoken.Encoding(
        "small",
        pat_str=LLAMA3_SPLIT,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 300, "<|fim|>": 305},
    )
    return Case(Vocabulary.from_tokenizer(encoding), encoding.encode_ordinary)


def byt5() -> Case:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    return Case(
        Vocabulary.from_tokenizer(tokenizer),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
    )


def mistral(name: str) -> Case:
    if find_spec("mistral_common") is None:
        pytest.skip("mistral-common is not installed")
    import mistral_common
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    path = Path(mistral_common.__file__).parent / "data" / name
    if not path.is_file():
        pytest.skip(f"this mistral-common carries no {name}")
    tokenizer = MistralTokenizer.from_file(str(path))
    inner = tokenizer.instruct_tokenizer.tokenizer
    return Case(
        Vocabulary.from_tokenizer(tokenizer),
        lambda text: inner.encode(text, bos=False, eos=False),
        lost=(SPACE_MARK,) if "model" in name else (),
    )


def zoo(folder: Path) -> Case:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    case = case_of(tokenizer, lost=(SPACE_MARK,))
    return replace(case, vocabulary=Vocabulary.from_tokenizer(folder))


CASES: dict[str, Callable[[], Case]] = {
    "gpt2": gpt2,
    "gpt2-prefix-space": lambda: gpt2(add_prefix_space=True),
    "llama3": llama3,
    "llama3-plain-merges": lambda: llama3(ignore_merges=False),
    "llama2-normalizer": lambda: llama2("normalizer"),
    "llama2-metaspace-always": lambda: llama2("always"),
    "llama2-metaspace-first": lambda: llama2("first"),
    "llama2-metaspace-never": lambda: llama2("never"),
    "unigram-byte-fallback": unigram_with_byte_fallback,
    "sentencepiece-bpe": lambda: sentencepiece_trained("bpe", True),
    "sentencepiece-unigram": lambda: sentencepiece_trained("unigram", False),
    "tiktoken": tiktoken_small,
    "byt5": byt5,
    **{
        name: lambda name=name: mistral(name)  # type: ignore[misc]
        for name in [
            "tokenizer.model.v1",
            "mistral_instruct_tokenizer_240216.model.v2",
            "mistral_instruct_tokenizer_240323.model.v3",
            "mistral_instruct_tokenizer_241114.model.v7",
            "mistral_instruct_tokenizer_241114.model.v7m1",
            "tekken_240718.json",
            "tekken_240911.json",
        ]
    },
    **{f"zoo-{folder.relative_to(ROOT)}": lambda folder=folder: zoo(folder) for folder in ZOO},  # type: ignore[misc]
}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield CASES[request.param]()


def test_corpus(case: Case) -> None:
    assert [text for text in TEXTS if case.misspelled(text)] == []


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=ANY_TEXT)
def test_any_text(case: Case, text: str) -> None:
    assert not case.misspelled(text)


def test_only_special_ids_are_without_bytes(case: Case) -> None:
    silent = [token for token, spelling in enumerate(case.vocabulary.token_bytes) if not spelling]
    assert tuple(silent) == case.vocabulary.special_ids
    assert case.vocabulary.eos_ids


def test_every_byte_can_be_spelled(case: Case) -> None:
    single = {spelling for spelling in case.vocabulary.token_bytes if len(spelling) == 1}
    missing = {bytes([byte]) for byte in range(256)} - single
    # No encoding of Unicode text holds these bytes, and ByT5 alone keeps ids for them all.
    assert missing <= {bytes([byte]) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: gpt2(), "never"),
        (lambda: gpt2(add_prefix_space=True), "unless_present"),
        (lambda: llama2("normalizer"), "always"),
        (lambda: llama2("first"), "unless_present"),
        (lambda: llama2("never"), "never"),
        (lambda: sentencepiece_trained("bpe", True), "always"),
        (lambda: sentencepiece_trained("bpe", False), "never"),
    ],
)
def test_whether_a_space_is_added(build: Callable[[], Case], expected: str) -> None:
    assert build().vocabulary.prefix_space == expected


@pytest.mark.parametrize("folder", ZOO, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_reads_as_its_tokenizer_in_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(str(folder))
    assert Vocabulary.from_tokenizer(fast) == Vocabulary.from_tokenizer(folder)


def test_a_normalizer_changes_the_text_and_not_the_tokens() -> None:
    normalised = llama3(normalizers.NFC())
    assert normalised.misspelled("e\u0301")
    assert normalised.vocabulary.decode(normalised.encode("e\u0301")) == "\u00e9".encode()


def broken(case: Case, spell: Callable[[int, bytes], bytes]) -> Case:
    """The same encoder beside a vocabulary with a planted bug."""
    old = case.vocabulary
    token_bytes = [spell(token, old.token_bytes[token]) for token in range(len(old))]
    vocabulary = Vocabulary(token_bytes, eos_ids=old.eos_ids, prefix_space=old.prefix_space)
    return replace(case, vocabulary=vocabulary)


def test_control_a_reader_that_forgets_the_byte_alphabet_is_caught() -> None:
    case = llama3()
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def as_written(token: int, spelling: bytes) -> bytes:
        if not spelling.isascii():
            return spelling
        return "".join(piece for piece, _ in alphabet.pre_tokenize_str(spelling.decode())).encode()

    wrong = [text for text in TEXTS if broken(case, as_written).misspelled(text)]
    assert " a" in wrong
    assert len(wrong) > len(TEXTS) // 2


@pytest.mark.parametrize(
    ("old", "new"), [(b" ", SPACE_MARK.encode()), (b"\n", b"<0x0A>"), (b"\xf0", b"\xef\xbf\xbd")]
)
def test_control_a_reader_that_forgets_marks_or_byte_pieces_is_caught(
    old: bytes, new: bytes
) -> None:
    case = llama2("normalizer")
    wrong = broken(case, lambda token, spelling: spelling.replace(old, new))
    assert any(wrong.misspelled(text) for text in TEXTS)


def random_merges(size: int) -> Tokenizer:
    """A byte-level BPE of any size in no time: each token joins two earlier ones at random."""
    random = Random(0)
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    known, merges = set(names), []
    while len(names) < size - 1:
        left, right = (names[random.randrange(min(len(names), 5000))] for _ in range(2))
        if left + right not in known and len(left + right) < 16:
            known.add(left + right)
            names.append(left + right)
            merges.append((left, right))
    tokenizer = Tokenizer(BPE({name: token for token, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def test_loading_131072_tokens_takes_less_than_three_cpu_seconds() -> None:
    tokenizer = random_merges(131_072)
    begin = time.process_time()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    seconds = time.process_time() - begin
    assert len(vocabulary) == 131_072
    assert seconds < 3.0
