"""TokenHealing in `generate()`: the user's bytes, the weights, batches, switches, constraints."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from midstream.logits_processors.token_healing import TokenHealing
from midstream.middleware.bytes.fim import EndsWith
from midstream.middleware.errors import InputError, StrategyError, VocabularyError
from midstream.middleware.vocabulary import Vocabulary

PAD, EOS = 4, 5
SAMPLED = {"do_sample": True, "max_new_tokens": 6}


def exact_law(small: Any, prompt: list[int], tail: bytes, steps: int) -> dict[bytes, float]:
    """P(bytes after the prompt's first `steps` tokens), of strings that spell the tail."""
    found: Counter[bytes] = Counter()

    def grow(ids: tuple[int, ...], log_p: float) -> None:
        text = small.vocabulary.decode(ids)
        if not (tail.startswith(text) or text.startswith(tail)):
            return
        if ids and ids[-1] in (PAD, EOS) and len(text) < len(tail):
            return
        if len(ids) == steps or (ids and ids[-1] == EOS):
            if len(text) >= len(tail):
                found[text[len(tail) :]] += math.exp(log_p)
            return
        for token, log in enumerate(small.log_law([*prompt, *ids])):
            grow((*ids, token), log_p + float(log))

    grow((), 0.0)
    total = sum(found.values())
    return {text: p / total for text, p in found.items()}


def test_weighted_continuations_have_the_law_of_strings_that_spell_the_tail(small: Any) -> None:
    """Self-normalised means within five standard errors; unweighted ones are not."""
    letters = [b"a", b"b", b"ab", b"aba", b"", b""]
    model = type(small)(small.model, Vocabulary(letters, eos_ids=[EOS], special_ids=[PAD]))
    healed = TokenHealing(model.vocabulary, seed=4).prepare(torch.tensor([[1, 1, 0, 1]]))
    assert healed.tails == (b"ab",) and healed.inputs["input_ids"].tolist() == [[1, 1]]
    options = {"do_sample": True, "max_new_tokens": 2, "num_return_sequences": 4000}
    out = model.model.generate(
        **healed.inputs, **options, logits_processor=healed.processors, pad_token_id=PAD
    )
    law = exact_law(model, [1, 1], b"ab", 2)
    weights = np.exp(healed.processors[0].log_weights)
    texts = healed.continuations(out)
    worst = plain = 0.0
    for text, p in law.items():
        hits = np.array([found == text for found in texts])
        share = float((weights * hits).sum() / weights.sum())
        error = math.sqrt(float((weights**2 * (hits - share) ** 2).sum())) / weights.sum()
        worst = max(worst, abs(share - p) / max(error, 1e-3))
        plain = max(plain, abs(float(hits.mean()) - p) / math.sqrt(p * (1 - p) / len(hits)))
    assert set(texts) <= set(law) and len(law) >= 5
    assert worst < 5
    assert plain > 7  # the control: without weights it is another law


def test_a_batch_keeps_each_users_bytes(small: Any) -> None:
    prompts = [[1, 3, 0], [3, 3], [1, 2, 0], [PAD, 0], [3, PAD]]
    width = max(map(len, prompts))
    inputs = {
        "input_ids": torch.tensor([[PAD] * (width - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }
    healed = TokenHealing(small.vocabulary).prepare(inputs)
    assert healed.tails == (b"a", b"", b"a", b"a", b"")
    out = small.model.generate(**healed.inputs, **SAMPLED, logits_processor=healed.processors)
    mask = healed.inputs["attention_mask"]
    for row, prompt, after in zip(
        range(len(prompts)), prompts, healed.continuations(out), strict=True
    ):
        kept = healed.inputs["input_ids"][row][mask[row] == 1].tolist()
        new = out[row, mask.shape[1] :].tolist()
        new = new[: new.index(EOS)] if EOS in new else new
        decode = small.vocabulary.decode
        assert decode(kept) + decode(new) == decode(prompt) + after
    assert set(healed.processors[0].status) <= {"finished", "length"}


def test_rows_do_not_depend_on_company(small: Any) -> None:
    """Prompts that are cut to the same ids draw apart, and each as it does alone."""
    prompts = [[3, 1, 0], [3, 1], [3, 3, 0], [3, 1, 0]]

    def run(batch: list[list[int]]) -> list[list[int]]:
        healed = TokenHealing(small.vocabulary, seed=9).prepare(batch)
        out = small.model.generate(**healed.inputs, **SAMPLED, logits_processor=healed.processors)
        rows = out[:, healed.inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(EOS)] if EOS in row else row for row in rows]

    together = run(prompts)
    # The second has no tail: alone it is left to `generate()`, whose random numbers are torch's.
    assert [run([prompts[i]])[0] for i in (0, 2)] == [together[i] for i in (0, 2)]
    assert together[3] != together[0]


def test_off_is_what_the_host_does(small: Any) -> None:
    inputs = {"input_ids": torch.tensor([[3, 1, 0]]), "attention_mask": torch.ones(1, 3).long()}
    healed = TokenHealing(small.vocabulary).prepare(inputs, heal=False)
    assert healed.processors == [] and healed.inputs["input_ids"] is inputs["input_ids"]
    outs = []
    for given in (inputs, healed.inputs):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            outs.append(small.model.generate(**given, **SAMPLED, logits_processor=[]))
    assert torch.equal(*outs)
    some = TokenHealing(small.vocabulary).prepare([[3, 1, 0], [3, 1, 0]], heal=[True, False])
    assert some.tails == (b"a", b"")
    assert some.inputs["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    for wrong in ([True], [True, 1], [1, 0]):
        with pytest.raises(StrategyError, match="one of them for each of the 2"):
            TokenHealing(small.vocabulary).prepare([[0], [0]], heal=wrong)


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_a_constraint_is_of_the_bytes_after_the_prompt(small: Any, sampler: str) -> None:
    texts = ("bc", "cab", "b", "a")
    healing = TokenHealing(small.vocabulary, constraint=small.matcher(*texts), sampler=sampler)
    healed = healing.prepare([[3, 1, 0]])
    out = small.model.generate(
        **healed.inputs,
        do_sample=True,
        max_new_tokens=8,
        num_return_sequences=60,
        logits_processor=healed.processors,
    )
    found = healed.continuations(out)
    assert {text.decode() for text in found} == set(texts)
    assert healed.processors[0].status == ["finished"] * 60
    assert any(2 in row for row in out[:, 2:].tolist())  # the token "ab" straddles the prompt's end


def test_a_hole_ends_with_what_was_moved_from_its_suffix(small: Any) -> None:
    """The right edge of fill-in-the-middle; and no end comes before it."""
    healed = TokenHealing(small.vocabulary, constraint=EndsWith(b"c")).prepare([[3, 1, 0]])
    out = small.model.generate(
        **healed.inputs,
        do_sample=True,
        max_new_tokens=8,
        num_return_sequences=80,
        logits_processor=healed.processors,
    )
    (processor,) = healed.processors
    texts = healed.continuations(out)
    ended = [text for text, how in zip(texts, processor.status, strict=True) if how == "finished"]
    assert len(ended) > 5 and all(text.endswith(b"c") for text in ended)
    assert set(processor.status) <= {"finished", "length"}
    plain = TokenHealing(small.vocabulary).prepare([[3, 1, 0]])
    out = small.model.generate(
        **plain.inputs,
        do_sample=True,
        max_new_tokens=8,
        num_return_sequences=80,
        logits_processor=plain.processors,
    )
    assert not all(text.endswith(b"c") for text in plain.continuations(out))


def test_a_limit_leaves_room_for_the_tail_and_the_text(small: Any) -> None:
    """The least budget is the tail's token, the text's and the end."""
    healing = TokenHealing(small.vocabulary, constraint=small.matcher("cc", "cccccc"))
    for limit in (4, 5):
        healed = healing.prepare([[3, 1, 0]])
        out = small.model.generate(
            **healed.inputs, max_new_tokens=limit, logits_processor=healed.processors
        )
        assert healed.continuations(out) == [b"cc"]
        assert healed.processors[0].status == ["finished"]


def test_greedy_healing_takes_the_best_token_that_agrees(small: Any) -> None:
    healed = TokenHealing(small.vocabulary).prepare([[3, 1, 0]])
    out = small.model.generate(
        **healed.inputs, max_new_tokens=1, logits_processor=healed.processors
    )
    law = small.log_law([3, 1])
    assert out[0, -1].item() == max((0, 2), key=lambda token: law[token])
    assert not healed.processors[0].law.proper


def test_a_stream_has_the_bytes_after_the_users(small: Any) -> None:
    healing = TokenHealing(small.vocabulary, seed=2)
    healed = healing.prepare([[3, 1, 0]])
    parts: list[bytes] = []
    out = small.model.generate(
        **healed.inputs,
        **SAMPLED,
        logits_processor=healed.processors,
        streamer=healed.streamer(parts.append),
    )
    assert b"".join(parts) == healed.continuations(out)[0]
    assert all(parts)


def test_other_entries_are_cut_along_and_kept(small: Any) -> None:
    ids = torch.tensor([[PAD, 3, 1, 0], [3, 3, 3, 3]])
    healed = TokenHealing(small.vocabulary).prepare(
        {
            "input_ids": ids,
            "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
            "token_type_ids": torch.tensor([[9, 0, 1, 2], [0, 1, 2, 3]]),
            "use_cache": True,
        }
    )
    assert healed.inputs["token_type_ids"][0, 2:].tolist() == [0, 1]
    assert healed.inputs["token_type_ids"][1].tolist() == [0, 1, 2, 3]
    assert healed.inputs["use_cache"] is True
    assert healed.inputs["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_bad_input(small: Any) -> None:
    healing = TokenHealing(small.vocabulary)
    with pytest.raises(InputError, match="empty prompt"):
        healing.prepare([[]])
    with pytest.raises(InputError, match="ids from 0 to 5"):
        healing.prepare([[77]])
    with pytest.raises(InputError, match="mapping with input_ids"):
        healing.prepare({"ids": [[0]]})
    with pytest.raises(InputError, match="rows of ids"):
        healing.prepare(torch.tensor([0, 1]))
    with pytest.raises(StrategyError, match="top_k"):
        TokenHealing(small.vocabulary, top_k=-1)
    one = healing.prepare([[0]])
    assert one.tails == (b"",) and one.processors == []
    healed = healing.prepare([[3, 1, 0]])
    with pytest.raises(InputError, match="1 prompts for 2"):
        small.model.generate(
            torch.tensor([[3, 1], [3, 1]]), **SAMPLED, logits_processor=healed.processors
        )


def test_a_vocabulary_that_ends_elsewhere_is_named(small: Any, tokenizer: Any) -> None:
    healing = TokenHealing(tokenizer, eos_ids=tokenizer.eos_token_id)
    assert healing.vocabulary.eos_ids == (tokenizer.eos_token_id,)
    healed = TokenHealing(small.vocabulary).prepare([[3, 1, 0]])
    with pytest.raises(VocabularyError, match="where generate"):
        small.model.generate(
            **healed.inputs, **SAMPLED, eos_token_id=3, logits_processor=healed.processors
        )
