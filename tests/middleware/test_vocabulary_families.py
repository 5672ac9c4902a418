"""Added and special tokens, the objects that wrap a tokenizer, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from midstream.middleware.errors import VocabularyError
from midstream.middleware.vocabulary import Vocabulary

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MARK = "\u2581"


def byte_level(
    *added: str | AddedToken, special: tuple[str, ...] = ("<|endoftext|>",)
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({name: token for token, name in enumerate(ALPHABET)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(added))
    return tokenizer


def marked(normalizer: Any, *added: str | AddedToken) -> Tokenizer:
    """SentencePiece's layout: byte pieces, letters and the mark for a space."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), MARK, *"abcdefxyz"]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizer
    steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.add_tokens(list(added))
    return tokenizer


def encoded(vocabulary: Vocabulary, tokenizer: Tokenizer, text: str) -> bytes:
    return vocabulary.decode(tokenizer.encode(text, add_special_tokens=False).ids)


def mistral_data(name: str) -> Path:
    if find_spec("mistral_common") is None:
        pytest.skip("mistral-common is not installed")
    import mistral_common

    path = Path(mistral_common.__file__).parent / "data" / name
    if not path.is_file():
        pytest.skip(f"this mistral-common carries no {name}")
    return path


@pytest.mark.parametrize("text", ["<tool>", "café", "Ġ", "  \n", "日本", "Ã©"])
def test_an_ordinary_added_token_is_the_text_that_it_matches(text: str) -> None:
    tokenizer = byte_level(text)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    token = tokenizer.token_to_id(text)
    assert vocabulary.token_bytes[token] == text.encode()
    assert token not in vocabulary.special_ids
    assert encoded(vocabulary, tokenizer, f"a{text}b") == f"a{text}b".encode()


def test_control_an_added_token_read_through_the_byte_alphabet_is_caught() -> None:
    tokenizer = byte_level("café")
    right = Vocabulary.from_tokenizer(tokenizer)
    token_bytes = list(right.token_bytes)
    token_bytes[tokenizer.token_to_id("café")] = b"caf\xe9"  # what its own decoder makes of it
    wrong = Vocabulary(token_bytes, eos_ids=right.eos_ids)
    assert encoded(right, tokenizer, "un café") == "un café".encode()
    assert encoded(wrong, tokenizer, "un café") != "un café".encode()


def test_an_added_special_token_has_no_bytes() -> None:
    tokenizer = byte_level("<think>", special=("<|endoftext|>", "<|im_start|>"))
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    special = {tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|im_start|>")}
    assert set(vocabulary.special_ids) == special
    assert encoded(vocabulary, tokenizer, "a<|im_start|>b<think>") == b"ab<think>"


def test_an_added_token_may_take_the_id_of_a_model_token() -> None:
    tokenizer = byte_level("é")  # a letter of the byte alphabet, where it stands for byte 0xE9
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.token_bytes[tokenizer.token_to_id("é")] == "é".encode()
    assert encoded(vocabulary, tokenizer, "né") == "né".encode()


@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens_of_a_normalizer_that_marks_spaces(normalized: bool) -> None:
    added = [AddedToken(text, normalized=normalized) for text in ("def", " x", "y z")]
    tokenizer = marked(normalizers.Replace(" ", MARK), *added)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    for text in ("a def", "adef", "a xb", "by zb"):
        assert encoded(vocabulary, tokenizer, text) == text.encode()


def test_a_normalizer_that_adds_a_space_adds_it_to_an_added_token() -> None:
    prepend = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    tokenizer = marked(prepend, AddedToken("def", normalized=True))
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.prefix_space == "always"
    assert vocabulary.token_bytes[tokenizer.get_vocab_size() - 1] == b" def"
    for text in ("def", "a def", "adef"):
        assert encoded(vocabulary, tokenizer, text) == vocabulary.spelled(text.encode())


def test_an_added_token_of_a_normalizer_that_writes_bytes() -> None:
    tokenizer = Tokenizer(models.BPE({name: token for token, name in enumerate(ALPHABET)}, []))
    tokenizer.normalizer = normalizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("café", normalized=True)])
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=[0])
    assert encoded(vocabulary, tokenizer, "un café") == "un café".encode()


def test_a_missing_decoder_is_read_off_the_first_half() -> None:
    for tokenizer in (byte_level("b"), marked(normalizers.Replace(" ", MARK))):
        full = Vocabulary.from_tokenizer(tokenizer)
        state = Tokenizer.from_str(tokenizer.to_str())
        state.decoder = None
        assert Vocabulary.from_tokenizer(state) == full


def test_unigram_without_byte_fallback_spells_what_its_pieces_spell() -> None:
    pieces = ["<unk>", "</s>", MARK, f"{MARK}the", "th", "e", "t", "h"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=[1])
    assert vocabulary.token_bytes == (b"", b"", b" ", b" the", b"th", b"e", b"t", b"h")
    assert encoded(vocabulary, tokenizer, "the teeth") == b" the teeth"
    assert encoded(vocabulary, tokenizer, "thé") == b" th"  # unknown, so special, so silent


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def end_of_word() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"l": 0, "o</w>": 1}, [], end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def end_of_word_decoder() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"l": 0, "o</w>": 1}, []))
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


def no_tokens() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def no_decoder() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def unigram_no_decoder() -> Tokenizer:
    return Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], 0))


def custom_decoder() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Decoder.custom(SimpleNamespace(decode_chain=list))
    return tokenizer


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (word_piece, "WordPiece tokenizer, whose tokens do not hold the spaces between words"),
        (end_of_word, "end_of_word_suffix '</w>'"),
        (end_of_word_decoder, "decoder step BPEDecoder"),
        (no_decoder, "WordLevel tokenizer without a decoder"),
        (unigram_no_decoder, "Unigram tokenizer without a decoder"),
        (custom_decoder, "without a JSON state"),
        (no_tokens, "one without tokens"),
        (lambda: None, "NoneType"),
        (object, "object"),
    ],
)
def test_tokenizers_without_exact_bytes_are_refused(build: Callable[[], Any], reason: str) -> None:
    with pytest.raises(VocabularyError, match=r"tokenizer: got .*; accepted: .*exact bytes") as got:
        Vocabulary.from_tokenizer(build(), eos_ids=[0])
    assert reason in str(got.value)


def test_fast_tokenizer_of_transformers() -> None:
    from transformers import PreTrainedTokenizerFast

    backend = byte_level("!!", special=("<|endoftext|>", "<|eot|>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eot|>")
    vocabulary = Vocabulary.from_tokenizer(fast)
    assert vocabulary.eos_ids == (backend.token_to_id("<|eot|>"),)
    assert vocabulary.special_ids == (256, 257)
    assert vocabulary == Vocabulary.from_tokenizer(backend, eos_ids=vocabulary.eos_ids)
    for text in ("naïve\n\n\t👩\u200d🚀 !!", ""):
        ids = fast.encode(text, add_special_tokens=False)
        assert vocabulary.decode(ids) == text.encode()


def test_an_ordinary_token_put_to_use_for_padding_keeps_its_bytes() -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|endoftext|>")
    fast.pad_token = "!"
    vocabulary = Vocabulary.from_tokenizer(fast)
    assert vocabulary.token_bytes[fast.pad_token_id] == b"!"
    fast.pad_token = fast.eos_token
    assert Vocabulary.from_tokenizer(fast) == vocabulary
    fast.bos_token = fast.pad_token = "#"  # in another role it is no text any more
    assert Vocabulary.from_tokenizer(fast).token_bytes[fast.bos_token_id] == b""


def test_a_byte_level_token_outside_the_alphabet_is_literal() -> None:
    tokenizer = Tokenizer(models.BPE({"Ġ": 0, "a b": 1, "日": 2, "é": 3}, []))
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=[])
    assert vocabulary.token_bytes == (b" ", b"a b", "日".encode(), b"\xe9")
    assert tokenizer.decode([0, 1, 2]) == " a b日"


def test_every_way_to_one_sentencepiece_model_gives_one_vocabulary(tmp_path: Path) -> None:
    import sentencepiece
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from transformers import MistralCommonBackend
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    path = mistral_data("tokenizer.model.v1")
    shutil.copy(path, tmp_path / "tokenizer.model")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    slow = SentencePieceBackend(vocab_file=str(tmp_path / "tokenizer.model"), **names)
    common = MistralTokenizer.from_file(str(path))
    ways = [
        sentencepiece.SentencePieceProcessor(model_file=str(path)),
        slow,
        common,
        common.instruct_tokenizer,
        common.instruct_tokenizer.tokenizer,
        MistralCommonBackend(str(path)),
    ]
    vocabularies = [Vocabulary.from_tokenizer(way) for way in ways]
    assert {vocabulary.fingerprint for vocabulary in vocabularies} == {
        "87f301bc101fb04642d5e3c662fdf28284ab947759fa12849a9c0e5161abbcdb"
    }
    assert {vocabulary.prefix_space for vocabulary in vocabularies} == {"always"}
    assert vocabularies[0].eos_ids == (2,)
    assert vocabularies[0].special_ids == (0, 1, 2)
    assert vocabularies[0].token_bytes[3 + 10] == b"\n"

    slow.add_tokens(["<tool>"])
    slow.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    more = Vocabulary.from_tokenizer(slow)
    assert more.token_bytes[32_000:] == (b"<tool>", b"")


def test_pieces_that_sentencepiece_calls_unused_are_special() -> None:
    import sentencepiece

    name = b"[INST]"
    model = bytearray(mistral_data("mistral_instruct_tokenizer_240323.model.v3").read_bytes())
    kind = model.index(name) + len(name) + 5  # after the score, a tag and a float
    assert model[kind : kind + 2] == b"\x18\x03"  # field 3: control
    model[kind + 1] = 5  # unused
    processor = sentencepiece.SentencePieceProcessor(model_proto=bytes(model))
    token = processor.piece_to_id(name.decode())
    assert processor.IsUnused(token)
    assert token in Vocabulary.from_tokenizer(processor).special_ids


def test_tokenizers_that_come_with_a_model_are_opened() -> None:
    import tiktoken

    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding(
        "bytes",
        pat_str=r"\s+|\S+",
        mergeable_ranks=ranks,
        special_tokens={"<|fim|>": 258, "<|im_end|>": 260},
    )
    plain = Vocabulary.from_tokenizer(encoding, eos_ids=[260])
    assert plain.token_bytes[:256] == tuple(bytes([byte]) for byte in range(256))
    assert plain.special_ids == (256, 257, 258, 259, 260)
    wrapped = SimpleNamespace(model=encoding, eos_token_id=260)
    assert Vocabulary.from_tokenizer(wrapped) == plain
