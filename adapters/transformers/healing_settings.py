"""What healing makes of a call of `generate()`: what it refuses, and what it hands on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Literal

import numpy.typing as npt
import torch

from midstream.adapters.transformers.settings import REFUSED, USED_MODEL_KWARGS
from midstream.logits_processors.generation_call import GenerationCall
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.law import Law

HONOURED = frozenset({"num_return_sequences"})
"""What a particle run refuses and healed rows can do."""


def check_healed(config: Any, model_kwargs: Mapping[str, Any]) -> None:
    """StrategyError for the first setting that healed rows cannot honour."""
    for name, (off, accepted) in REFUSED.items():
        value = getattr(config, name, None)
        if name not in HONOURED and value is not None and value != off:
            raise StrategyError(name, value, accepted)
    for name, value in model_kwargs.items():
        if name not in USED_MODEL_KWARGS and value is not None:
            accepted = "text prompts: input_ids and attention_mask"
            raise StrategyError(name, type(value).__name__, accepted)
    cache = model_kwargs.get("past_key_values")
    if getattr(cache, "_is_user_defined", False):
        accepted = "None: the end of the prompt is drawn again"
        raise StrategyError("past_key_values", type(cache).__name__, accepted)


def law_behind(
    call: GenerationCall | None, truncation: Literal["target", "after_mask"] | None
) -> Law:
    """The law that `generate()` was asked for; at temperature 0 what is most probable is taken."""
    if call is None:
        raise InputError("generation_config", None, "a GenerationConfig, as generate() passes it")
    if call.streamer is not None:
        accepted = "heal(..., sink=...): it gives the bytes behind the user's alone"
        raise StrategyError("streamer", type(call.streamer).__name__, accepted)
    if not call.config.do_sample:
        return Law(temperature=0.0)
    return Law(**call.law, truncation=truncation)  # type: ignore[arg-type]  # top_k is an int there


def switches(heal: bool | Sequence[bool], rows: int, config: Any) -> bool | list[bool]:
    """Whether to heal, for each row: several rows may be of one prompt."""
    if isinstance(heal, bool):
        return heal
    expand = config.num_return_sequences or 1
    wanted = [on for on in heal for _ in range(expand)]
    if len(wanted) != rows:
        accepted = f"True, False, or one of them for each of the {rows // expand} prompts"
        raise StrategyError("heal", list(heal), accepted)
    return wanted


def own_cache(config: Any) -> bool:
    """Whether the call asks for a cache of another kind than one that grows."""
    return config.cache_implementation not in (None, "dynamic")


def config_behind(config: Any, law: Law, limit: int) -> Any:
    """The settings of the call behind the healed prompts: the law in full, one row a prompt."""
    behind = copy.deepcopy(config)
    behind.num_return_sequences = 1
    behind.max_length, behind.max_new_tokens = None, limit
    if not own_cache(config):
        behind.cache_implementation = None  # beside a cache that is given it is an error
    if config.do_sample:
        behind.temperature = law.temperature
        behind.top_k, behind.top_p, behind.min_p = law.top_k, law.top_p, law.min_p
    return behind


def generate_locals(frame: FrameType | None) -> dict[str, Any]:
    """What the user gave `generate()`, whose own additions are made again behind the prompt."""
    while frame is not None and frame.f_code.co_name != "generate":
        frame = frame.f_back
    return {} if frame is None else dict(frame.f_locals)


def rows_of(processors: Any, device: Any) -> Callable[[Any, npt.NDArray[Any]], npt.NDArray[Any]]:
    """Processors as a function of the ids before each row."""

    def rows(ids: Sequence[Sequence[int]], logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
        made = []
        for before, row in zip(ids, logits, strict=True):
            scores = torch.tensor(row[None], dtype=torch.float32, device=device)
            made.append(processors(torch.tensor([list(before)], device=device), scores)[0])
        stacked: npt.NDArray[Any] = torch.stack(made).cpu().numpy()
        return stacked

    return rows
