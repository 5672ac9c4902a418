"""The `custom_generate` repository, loaded from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TextStreamer, dynamic_module_utils

from midstream.adapters.transformers import heal, smc
from midstream.middleware.constraints import Choice
from midstream.middleware.errors import StrategyError

HUB = Path(__file__).resolve().parents[3] / "hub"
TEXTS = ["ab", "abc", "ca"]


@pytest.fixture(autouse=True)
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies the code before it runs it."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_it_does_what_smc_does(small: Any) -> None:
    prompt = torch.tensor([[1, 3, 0]])
    given = {"particles": 4, "seed": 3, "sampler": "awrs", "ess_threshold": 0.9}
    output = small.model.generate(
        prompt,
        custom_generate=str(HUB),
        trust_remote_code=True,
        constraint=Choice(TEXTS),
        tokenizer=small.vocabulary,
        max_new_tokens=8,
        return_dict_in_generate=True,
        **given,
    )
    run = smc(Choice(TEXTS), small.vocabulary, **given)
    expected = small.model.generate(prompt, custom_generate=run, max_new_tokens=8)
    assert torch.equal(output.sequences, expected)
    assert output.results[0].log_evidence == run.result.log_evidence


def test_settings_of_generate_reach_it(small: Any) -> None:
    asked: dict[str, Any] = {
        "custom_generate": str(HUB),
        "trust_remote_code": True,
        "constraint": Choice(TEXTS),
        "tokenizer": small.vocabulary,
        "particles": 2,
        "max_new_tokens": 8,
    }
    prompt = torch.tensor([[1, 3, 0]])
    with pytest.raises(StrategyError, match="num_beams"):
        small.model.generate(prompt, num_beams=2, **asked)
    with pytest.raises(StrategyError, match="truncation"):
        small.model.generate(prompt, do_sample=True, top_k=50, **asked)
    small.model.generate(prompt, do_sample=True, **asked)  # the library's own top_k = 50
    with pytest.raises(ValueError, match="trust_remote_code"):
        small.model.generate(prompt, **{**asked, "trust_remote_code": False})


def test_a_streamer_arrives(small: Any, tokenizer: Any, capsys: Any, make_llama: Any) -> None:
    model = make_llama(len(tokenizer), pad_token_id=None, eos_token_id=tokenizer.eos_token_id)
    model.generate(
        torch.tensor([tokenizer("Say: ")["input_ids"]]),
        custom_generate=str(HUB),
        trust_remote_code=True,
        constraint=Choice(["one", "two"]),
        tokenizer=tokenizer,
        particles=3,
        max_new_tokens=8,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    assert capsys.readouterr().out.strip() in ("one", "two")


def test_healing_does_what_heal_does(tokenizer: Any, make_llama: Any) -> None:
    model = make_llama(len(tokenizer), pad_token_id=0, eos_token_id=tokenizer.eos_token_id)
    given = {"seed": 3, "constraint": Choice(["nt", "nting"])}
    asked = {**tokenizer(["for i in x:\n    pri"], return_tensors="pt"), "max_new_tokens": 6}
    asked.pop("token_type_ids", None)
    hub = {"custom_generate": str(HUB), "trust_remote_code": True, "tokenizer": tokenizer}
    output = model.generate(**asked, **hub, heal=True, return_dict_in_generate=True, **given)
    own = heal(tokenizer, **given)
    expected = model.generate(**asked, custom_generate=own)
    assert torch.equal(output.sequences, expected)
    assert output.continuations == tuple(own.continuations(expected))
    assert output.continuations[0] in (b"nt", b"nting")
    assert output.log_weights.tolist() == own.log_weights.tolist() and own.log_weights[0] < 0
    assert output.healed[0].log_cover == own.healed[0].log_cover
    # Off it leaves the prompt's tokens, and what is the other's option is an error.
    left = model.generate(**asked, **hub, heal=False)
    assert torch.equal(left[:, : asked["input_ids"].shape[1]], asked["input_ids"])
    with pytest.raises(ValueError, match="particles"):
        model.generate(**asked, **hub, heal=True, particles=3)
