"""Which ids end a sequence, and what is said where the files of a model differ about it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from midstream.middleware.errors import VocabularyError
from midstream.middleware.vocabulary import Vocabulary, VocabularyWarning, end_of_sequence_ids

NAMES = ["a", "b", "<s>", "</s>", "<|eot|>", "<|user|>"]


def tokenizer_of(names: list[str], special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({name: token for token, name in enumerate(names)}))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tokenizer_of(NAMES, NAMES[2:])


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder: Path, name: str, **fields: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(fields))


def test_the_tokenizer_is_asked_last(folder: Path) -> None:
    write(folder, "tokenizer_config", eos_token="<|eot|>")
    assert Vocabulary.from_tokenizer(folder).eos_ids == (4,)
    write(folder, "config", eos_token_id=3)
    with pytest.warns(VocabularyWarning, match=r"config \[3\], tokenizer \[4\]; taken: config"):
        assert Vocabulary.from_tokenizer(str(folder)).eos_ids == (3,)
    write(folder, "generation_config", eos_token_id=[5, 3])
    with pytest.warns(VocabularyWarning, match=r"generation_config \[5, 3\], config \[3\]"):
        vocabulary = Vocabulary.from_tokenizer(folder)
    assert vocabulary.eos_ids == (5, 3)
    assert Vocabulary.from_tokenizer(folder, eos_ids=[2]).eos_ids == (2,)


def test_where_all_agree_nothing_is_said(folder: Path) -> None:
    write(folder, "tokenizer_config", eos_token={"content": "</s>", "special": True})
    write(folder, "config", eos_token_id=3)
    write(folder, "generation_config", eos_token_id=[3])
    assert Vocabulary.from_tokenizer(folder).eos_ids == (3,)


def test_a_place_that_names_none_is_passed_over(folder: Path) -> None:
    write(folder, "tokenizer_config", eos_token=None)
    write(folder, "config", eos_token_id=None, text_config={"eos_token_id": [4, 3]})
    write(folder, "generation_config")
    with pytest.warns(VocabularyWarning):
        assert Vocabulary.from_tokenizer(folder).eos_ids == (4, 3)


def test_configurations_of_a_model_in_hand(tokenizer: Tokenizer) -> None:
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    config = LlamaConfig(eos_token_id=3, vocab_size=8)
    assert end_of_sequence_ids(fast, config) == (3,)
    with pytest.warns(VocabularyWarning):
        ids = end_of_sequence_ids(fast, config, GenerationConfig(eos_token_id=[4, 3]))
    vocabulary = Vocabulary.from_tokenizer(fast, eos_ids=ids, size=config.vocab_size)
    assert vocabulary.eos_ids == (4, 3)
    assert vocabulary.special_ids == (2, 3, 4, 5, 6, 7)


def test_the_warning_points_at_the_caller(folder: Path) -> None:
    write(folder, "config", eos_token_id=4)
    with pytest.warns(VocabularyWarning) as told:
        Vocabulary.from_tokenizer(folder)
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("names", "special", "expected"),
    [
        (["a", "</s>"], ["</s>"], (1,)),
        (["a", "<|endoftext|>"], [], (1,)),  # a bare vocab.json marks nothing as special
        (["<s>", "<eos>"], ["<s>", "<eos>"], (1,)),
    ],
)
def test_a_tokenizer_that_names_none_is_searched_for_the_usual_names(
    names: list[str], special: list[str], expected: tuple[int, ...]
) -> None:
    assert Vocabulary.from_tokenizer(tokenizer_of(names, special)).eos_ids == expected


@pytest.mark.parametrize(
    ("names", "special"),
    [
        (["a", "b"], []),
        (["a", "</s>"], []),  # ordinary text, such as the end of a struck-out passage in HTML
        (["<|endoftext|>", "<|im_end|>"], ["<|endoftext|>", "<|im_end|>"]),
    ],
)
def test_where_nothing_names_one_the_caller_must(names: list[str], special: list[str]) -> None:
    tokenizer = tokenizer_of(names, special)
    with pytest.raises(VocabularyError, match="eos_ids: got None"):
        Vocabulary.from_tokenizer(tokenizer)
    assert Vocabulary.from_tokenizer(tokenizer, eos_ids=[1]).eos_ids == (1,)
    assert Vocabulary.from_tokenizer(tokenizer, eos_ids=[]).eos_ids == ()


def test_names_are_found_in_the_wrappers_of_tokenizers() -> None:
    from tokenizers.implementations import ByteLevelBPETokenizer

    wrapper = ByteLevelBPETokenizer()
    wrapper.train_from_iterator(["abc"], show_progress=False, special_tokens=["</s>"])
    assert Vocabulary.from_tokenizer(wrapper).eos_ids == (0,)


@pytest.mark.parametrize("named", ["3", 1.5, [3, None]])
def test_a_configuration_with_ids_that_are_none(tokenizer: Tokenizer, named: object) -> None:
    with pytest.raises(VocabularyError, match="eos_token_id"):
        end_of_sequence_ids(tokenizer, SimpleNamespace(eos_token_id=named))


def test_folders_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"folder that holds a valid tokenizer\.json"):
        Vocabulary.from_tokenizer(tmp_path / "absent")
    write(folder, "config", eos_token_id=3)
    (folder / "config.json").write_text("{")
    with pytest.raises(VocabularyError, match=r"config\.json .*accepted: valid JSON"):
        Vocabulary.from_tokenizer(folder)
    (folder / "config.json").write_text("[3]")
    with pytest.raises(VocabularyError, match="a JSON object"):
        Vocabulary.from_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(VocabularyError, match="a valid tokenizer"):
        Vocabulary.from_tokenizer(folder)
