"""Healing inside plain `generate()`: the prompt is cut, and its tail drawn again by its bytes.

A prompt that ends inside a token leaves a model no good way to go on. Here the tail's tokens are
taken back and drawn again together with what follows, under masks that keep the user's bytes. That
is the locally masked law, with its importance weight; `midstream.middleware.bytes.healing` draws
from the exact law, on hosts that can read a few short rows first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from midstream.logits_processors.constrained_sampling import ConstrainedSampling
from midstream.logits_processors.fit import CompiledConstraints
from midstream.middleware.bytes.beyond import AnyIds
from midstream.middleware.bytes.spelling import spells_first
from midstream.middleware.bytes.tail import Overshoot, added_ids, cut_place
from midstream.middleware.errors import InputError, StrategyError
from midstream.middleware.matcher import Matcher
from midstream.middleware.sampling import sampler_of
from midstream.middleware.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


class TokenHealing:
    """Prepares prompts that may end inside a token: see `prepare`.

    With w = exp(processor.log_weights[b]) and p the model's law of token strings after the ids that
    stay, E[w 1{tokens = t}] = p(t) for each t whose bytes begin with the tail's and go on as the
    constraint wants: the law of the restricted strings, weighted. Without the weights the draws are
    those of the locally masked law, which prefers tokens that paint the text into a corner.

    tokenizer: the model's, or a Vocabulary. Its special and added tokens (chat templates, sentinels
        of fill-in-the-middle) are walls: nothing before one is drawn again. Of a Vocabulary only
        the special ids are known.
    eos_ids: where `generate()` stops, as in GenerationConfig; None: as the tokenizer says.
    constraint: of the bytes after the prompt's; one, a list with one for each prompt, or None.
    options: those of `ConstrainedSampling`: sampler, seed, temperature, top_k, top_p, min_p,
        truncation, backend.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        constraint: Any = None,
        eos_ids: int | Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(tokenizer, Vocabulary):
            self.vocabulary = tokenizer
        else:
            ids = [eos_ids] if isinstance(eos_ids, int) else eos_ids
            self.vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=ids)
        self._walls = added_ids(tokenizer)
        self._options = options
        self._constraints: CompiledConstraints | None = None
        if constraint is not None:
            sampler = sampler_of(options.get("sampler", "auto"))
            self._constraints = CompiledConstraints(constraint, self.vocabulary, sampler)
        ConstrainedSampling(AnyIds(self.vocabulary), self.vocabulary, **options)  # checks options

    def prepare(self, inputs: Any, *, heal: bool | Sequence[bool] = True) -> HealedInputs:
        """Cut the tails of the prompts: `model.generate(**healed.inputs, logits_processor=...)`.

        inputs: a mapping with input_ids and perhaps attention_mask, [B, L] each, as a tokenizer
            returns it, or the ids alone, a tensor [B, L] or lists of ids. Entries of the same shape
            are cut along, others kept.
        heal: whether to, for all prompts or for each. A prompt that is not healed keeps its ids;
            where that is all of them and there is no constraint, `processors` is empty and
            `generate()` does what it does without healing, bit for bit.
        `max_new_tokens` counts the tokens that spell the tail again.

        A prompt that ends in a wall, that no token can straddle, or that has one id, is not cut.
        Raises InputError for an empty prompt, ids that are not of the vocabulary, and a `heal` that
        does not fit.
        """
        batch = _Batch.of(inputs)
        wanted = _switches(heal, len(batch.prompts))
        places = [
            cut_place(prompt, self.vocabulary, self._walls) if on else len(prompt)
            for prompt, on in zip(batch.prompts, wanted, strict=True)
        ]
        tails = tuple(
            self.vocabulary.decode(prompt[place:])
            for prompt, place in zip(batch.prompts, places, strict=True)
        )
        processors = []
        if any(tails) or self._constraints is not None:
            processors.append(self._processor(tails, batch.prompts))
        cut = batch.cut(places) if any(tails) else batch.given
        return HealedInputs(cut, processors, tails, self.vocabulary)

    def _processor(
        self, tails: Sequence[bytes], prompts: Sequence[Sequence[int]]
    ) -> ConstrainedSampling:
        after: list[Matcher] = [AnyIds(self.vocabulary)] * len(tails)
        if self._constraints is not None:
            after = self._constraints.for_prompts(len(tails))
        matchers = [spells_first(tail, then) for tail, then in zip(tails, after, strict=True)]
        return ConstrainedSampling(matchers, self.vocabulary, prompts=prompts, **self._options)


@dataclass(frozen=True, slots=True)
class HealedInputs:
    """What `TokenHealing.prepare` made of a batch.

    inputs: for `generate(**inputs)`: rows padded on the left, int64, or as given where nothing was
        cut. processors: for its `logits_processor`; the one in it holds log_weights and status of
        the rows, as `ConstrainedSampling` says. tails: for each prompt the bytes that were cut.
    """

    inputs: dict[str, Any]
    processors: list[ConstrainedSampling]
    tails: tuple[bytes, ...]
    vocabulary: Vocabulary

    def continuations(self, sequences: Tensor | Sequence[Sequence[int]]) -> list[bytes]:
        """Of what `generate()` returned, [B n, L]: the bytes of each row after the user's.

        b"" for a row that did not spell the user's bytes to their end (status `dead` or `length`).
        """
        rows = sequences.tolist() if hasattr(sequences, "tolist") else sequences
        width = len(self.inputs["input_ids"][0])
        expand = len(rows) // len(self.tails)
        return [
            self._after(row[width:], self.tails[place // expand]) for place, row in enumerate(rows)
        ]

    def _after(self, tokens: Sequence[int], tail: bytes) -> bytes:
        text, found = Overshoot(self.vocabulary, tail), b""
        for token in tokens:
            if token in self.vocabulary.eos_ids:
                break
            found += text.push(token)
        return found

    def streamer(self, sink: Callable[[bytes], None], *, prompt: int = 0) -> HealedStream:
        """For `generate(streamer=...)` with one prompt: gives `sink` the bytes after the user's."""
        return HealedStream(Overshoot(self.vocabulary, self.tails[prompt]), sink)


class HealedStream:
    """A streamer of transformers that hands on bytes: each after the user's once, and no other.

    Bytes may end within a character: join them, or decode by an incremental decoder.
    """

    def __init__(self, overshoot: Overshoot, sink: Callable[[bytes], None]) -> None:
        self._overshoot = overshoot
        self._sink = sink
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """The prompt first, which is the user's; then tokens of one row."""
        if self._prompt:
            self._prompt = False
            return
        ids = value.reshape(-1).tolist()
        fresh = b"".join([self._overshoot.push(token) for token in ids])
        if fresh:
            self._sink(fresh)

    def end(self) -> None:
        """Nothing is held back, so nothing is left."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch as it was given, and its prompts without padding."""

    given: dict[str, Any]
    prompts: list[list[int]]
    kept: list[list[int]]  # the columns of each prompt

    @classmethod
    def of(cls, inputs: Any) -> _Batch:
        import torch

        given = dict(inputs) if isinstance(inputs, Mapping) else {"input_ids": inputs}
        if "input_ids" not in given:
            raise InputError("inputs", sorted(given), "a mapping with input_ids, or ids")
        ids, mask = given["input_ids"], given.get("attention_mask")
        rows = ids.tolist() if hasattr(ids, "tolist") else [list(row) for row in ids]
        if not rows or not all(isinstance(row, list) for row in rows):
            raise InputError("input_ids", ids, "rows of ids, [B, L]")
        if mask is None:
            flags = [[1] * len(row) for row in rows]
        else:
            flags = mask.tolist() if hasattr(mask, "tolist") else [list(row) for row in mask]
        kept = [[place for place, on in enumerate(row) if on] for row in flags]
        prompts = [[row[i] for i in places] for row, places in zip(rows, kept, strict=True)]
        if not hasattr(ids, "shape"):
            given = dict(given, **_padded(prompts, torch))
            width = given["input_ids"].shape[1]
            kept = [list(range(width - len(prompt), width)) for prompt in prompts]
        return cls(given, prompts, kept)

    def cut(self, places: Sequence[int]) -> dict[str, Any]:
        """The batch with the first `places[b]` ids of each prompt, padded on the left."""
        import torch

        ids = self.given["input_ids"]
        width = max(places)
        columns = [[0] * (width - n) + kept[:n] for kept, n in zip(self.kept, places, strict=True)]
        index = torch.tensor(columns, device=ids.device)
        flags = [[0] * (width - n) + [1] * n for n in places]
        mask = torch.tensor(flags, device=ids.device)
        return {
            **{
                name: value.gather(1, index) if _like(value, ids) else value
                for name, value in self.given.items()
            },
            "attention_mask": mask,
        }


def _like(value: Any, ids: Tensor) -> bool:
    return hasattr(value, "gather") and value.shape == ids.shape


def _padded(prompts: Sequence[Sequence[int]], torch: Any) -> dict[str, Any]:
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _switches(heal: bool | Sequence[bool], prompts: int) -> list[bool]:
    if isinstance(heal, bool):
        return [heal] * prompts
    wanted = list(heal)
    if len(wanted) != prompts or not all(isinstance(on, bool) for on in wanted):
        accepted = f"True, False, or one of them for each of the {prompts} prompts"
        raise StrategyError("heal", heal, accepted)
    return wanted
