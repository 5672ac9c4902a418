"""What the running `generate()` of transformers was asked for.

transformers hands a logits processor the ids and the scores, no configuration, and applies the
temperature, top-k, top-p and min-p of `generate()` after it. So the configuration is read from the
frames that called, which hold it as a local named `generation_config`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

LAW_DEFAULTS: Mapping[str, float] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""The settings of `generate()` that are a `Law`, with the values that leave the model's law
alone."""


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """One call of `generate()`.

    config: the GenerationConfig in force, an object of this call alone. loop: the name of the
        decoding function.
    law: those of temperature, top_k, top_p and min_p that the call or the model's
        generation_config.json sets. The library's own default top_k = 50, which nobody asked for,
        is not among them.
    processors: all logits processors, in order. model_kwargs: what goes to the model,
        attention_mask among it.
    streamer: the one given to `generate()`.
    """

    config: Any
    loop: str
    law: Mapping[str, float]
    processors: tuple[Any, ...]
    model_kwargs: Mapping[str, Any]
    streamer: Any

    @property
    def expand(self) -> int:
        """Rows that `generate()` makes of one prompt."""
        return max(self.config.num_beams or 1, self.config.num_return_sequences or 1)

    @property
    def beams(self) -> bool:
        """Whether several beams compete for the same output."""
        return (self.config.num_beams or 1) > 1


def calling_config(frame: FrameType | None) -> Any:
    """The GenerationConfig of the nearest frame that has one, else None. A few microseconds."""
    for _, values in _frames_with("generation_config", frame):
        if _is_config(values["generation_config"]):
            return values["generation_config"]
    return None


def calling_generate(frame: FrameType | None) -> GenerationCall | None:
    """The call of `generate()` that a frame belongs to; None where no frame has a configuration."""
    frames = [
        (found, values)
        for found, values in _frames_with("generation_config", frame)
        if _is_config(values["generation_config"])
    ]
    if not frames:
        return None
    (loop, values), config = frames[0], frames[0][1]["generation_config"]
    outer = next((v for f, v in frames if f.f_code.co_name == "generate"), {})
    wrapper = next((f for f, v in frames if v is outer), None)
    return GenerationCall(
        config=config,
        loop=loop.f_code.co_name,
        law=_law_settings(config, [*_given(outer), *_wrapped(wrapper)]),
        processors=tuple(values.get("logits_processor") or ()),
        model_kwargs=values.get("model_kwargs") or {},
        streamer=outer.get("streamer"),
    )


def _law_settings(config: Any, sources: list[Any]) -> dict[str, float]:
    """The settings that one of the sources names, or that differ from the library's default."""
    defaults: Mapping[str, Any] = getattr(config, "_get_default_generation_params", dict)()
    settings = {}
    for name, off in LAW_DEFAULTS.items():
        value = getattr(config, name, None)
        named = any(_field(source, name) is not None for source in sources)
        if named or value != defaults.get(name):
            settings[name] = off if value is None else value
    return settings


def _given(outer: Mapping[str, Any]) -> Iterator[Any]:
    """What `generate()` takes settings from: keywords, and the model's generation_config.json."""
    if "kwargs" in outer:
        yield outer["kwargs"]
    model_config = getattr(outer.get("self"), "generation_config", None)
    if model_config is not None:
        yield model_config


def _wrapped(generate: FrameType | None) -> Iterator[Any]:
    """The configuration that was passed, from a decorator's frame: `generate()` merges a copy."""
    wrapper = generate.f_back if generate is not None else None
    if wrapper is None or wrapper.f_code.co_name != "decorate_context":
        return
    values = _locals_of(wrapper)
    for value in (*values.get("args", ()), *values.get("kwargs", {}).values()):
        if _is_config(value):
            yield value


def _frames_with(
    name: str, frame: FrameType | None
) -> Iterator[tuple[FrameType, Mapping[str, Any]]]:
    """Functions with a local of that name and their locals, from the inside out."""
    while frame is not None:
        if name in frame.f_code.co_varnames and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            values = _locals_of(frame)
            if name in values:
                yield frame, values
        frame = frame.f_back


def _locals_of(frame: FrameType) -> dict[str, Any]:
    """A copy of a function's locals."""
    held = frame.f_locals
    values = dict(held)
    if isinstance(held, dict):
        # Before Python 3.13 the frame keeps this snapshot, and the model's last outputs in it.
        held.clear()
    return values


def _is_config(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("do_sample", "num_beams", "max_length"))


def _field(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
