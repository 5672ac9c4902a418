"""The vocabulary of the model that an engine serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from midstream.middleware.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def engine_vocabulary(vllm_config: VllmConfig) -> Vocabulary:
    """The bytes of every id of a row of logits, from the engine's own tokenizer.

    End of sequence is what the engine stops at: generation_config's ids, else the tokenizer's.
    """
    from vllm.tokenizers import cached_tokenizer_from_config

    model = vllm_config.model_config
    tokenizer = cached_tokenizer_from_config(model)
    generation = model.try_get_generation_config() or {}
    eos = generation.get("eos_token_id")
    ids = [eos] if isinstance(eos, int) else list(eos or [])
    own = getattr(tokenizer, "eos_token_id", None)
    if own is not None and own not in ids:
        ids.insert(0, own)
    return Vocabulary.from_tokenizer(tokenizer, eos_ids=ids or None, size=model.get_vocab_size())
