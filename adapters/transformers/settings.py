"""What a particle run makes of the settings of `generate()`: each is honoured or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from transformers import LogitsProcessorList

from midstream.logits_processors.generation_call import LAW_DEFAULTS, GenerationCall
from midstream.logits_processors.generation_law import OWN_WARPERS
from midstream.middleware.errors import StrategyError
from midstream.middleware.law import Law

REFUSED: Mapping[str, tuple[Any, str]] = {
    "num_beams": (1, "1: particles are no beams"),
    "num_return_sequences": (1, "1: smc(particles=...) says how many sequences come back"),
    "num_beam_groups": (1, "1"),
    "penalty_alpha": (0.0, "None"),
    "dola_layers": (None, "None"),
    "prompt_lookup_num_tokens": (None, "None: particles are not drafted"),
    "use_cache": (True, "True: each token is read once"),
    "prefill_chunk_size": (None, "None"),
    "typical_p": (1.0, "1.0: it is no part of a law that weights are proper for"),
    "top_h": (None, "None: it is no part of a law that weights are proper for"),
    "epsilon_cutoff": (0.0, "0.0: it is no part of a law that weights are proper for"),
    "eta_cutoff": (0.0, "0.0: it is no part of a law that weights are proper for"),
    "watermarking_config": (None, "None: a watermark changes the law after the draw"),
    "stop_strings": (None, "None: what is complete is the constraint's to say"),
    "max_time": (None, "None: no clock decides what is sampled; smc(cancelled=...) stops a run"),
    "output_scores": (False, "False: the result holds weights"),
    "output_logits": (False, "False"),
    "output_attentions": (False, "False"),
    "output_hidden_states": (False, "False"),
}
"""Settings that a particle run can't honour: the value that leaves them off, and what is
accepted."""

STATEFUL = frozenset(
    {
        "ConstrainedSampling",
        "PrefixConstrainedLogitsProcessor",
        "SynthIDTextWatermarkLogitsProcessor",
        "UnbatchedClassifierFreeGuidanceLogitsProcessor",
        "WatermarkLogitsProcessor",
    }
)
"""Processors that keep a state for each row, or read the row's number: rows move when particles are
resampled."""

USED_MODEL_KWARGS = frozenset(
    {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
)
OWN_CRITERIA = frozenset({"MaxLengthCriteria", "EosTokenCriteria"})


def check_settings(config: Any, model_kwargs: Mapping[str, Any], stopping_criteria: Any) -> None:
    """Raise StrategyError for the first setting that a particle run cannot honour."""
    for name, (off, accepted) in REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value != off:
            raise StrategyError(name, value, accepted)
    if config.cache_implementation not in (None, "dynamic", "static"):
        raise StrategyError(
            "cache_implementation", config.cache_implementation, "'dynamic' or 'static'"
        )
    for criterion in stopping_criteria:
        name = type(criterion).__name__
        if name not in OWN_CRITERIA:
            accepted = "none: a run ends by the constraint, max_new_tokens, or smc(cancelled=...)"
            raise StrategyError("stopping_criteria", name, accepted)
    for name, value in model_kwargs.items():
        if name not in USED_MODEL_KWARGS and value is not None:
            raise StrategyError(
                name, type(value).__name__, "text prompts: input_ids and attention_mask"
            )
    cache = model_kwargs.get("past_key_values")
    if getattr(cache, "_is_user_defined", False):
        raise StrategyError(
            "past_key_values", type(cache).__name__, "None: a run has its own cache"
        )


def law_of(call: GenerationCall, truncation: Literal["target", "after_mask"] | None) -> Law:
    """The law that `generate()` was asked for.

    top_k = 50, the library's own default, is no truncation unless somebody set it. do_sample=False
    leaves the model's own law, since a particle run draws in any case; a temperature or truncation
    beside it is an error.
    """
    if call.config.do_sample:
        return Law(**call.law, truncation=truncation)  # type: ignore[arg-type]  # top_k is an int there
    for name, value in call.law.items():
        if value != LAW_DEFAULTS[name]:
            raise StrategyError(name, f"{value} with do_sample=False", "do_sample=True beside it")
    return Law()


def target_processors(processors: Any) -> Any:
    """The processors that are part of the target: all but temperature and truncation, or None."""
    kept = LogitsProcessorList()
    for processor in processors:
        name = type(processor).__name__
        if name in STATEFUL:
            accepted = (
                "functions of a row's ids and scores alone: rows move when particles are resampled"
            )
            raise StrategyError("logits_processor", name, accepted)
        if name not in OWN_WARPERS:
            kept.append(processor)
    return kept or None
