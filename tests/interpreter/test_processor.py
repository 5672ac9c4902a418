"""ConstrainedSampling with its draws made by the kernels: the same results as on the host, and one
wait for the device a step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from midstream.logits_processors import ConstrainedSampling
from midstream.logits_processors.rows import SampledRows
from midstream.middleware.constraints import Choice, Regex
from midstream.middleware.errors import StrategyError
from midstream.middleware.matcher import Matcher
from midstream.middleware.sampling import AWRS
from midstream.middleware.vocabulary import Vocabulary

# numpy, which interprets, warns of the logarithm of a row that allows nothing.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

PAD, EOS = 4, 5
TEXTS = ("ab", "abc", "ca", "b", "cab", "ccab", "aab")
LETTERS = [b"a", b"b", b"ab", b"c", b"", b""]
TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=6,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=None,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval()


def vocabulary(eos_ids: Sequence[int] = (EOS,)) -> Vocabulary:
    return Vocabulary(LETTERS, eos_ids=eos_ids, special_ids={PAD, EOS} - set(eos_ids))


def choice(*texts: str, of: Vocabulary | None = None) -> Matcher:
    return Choice(texts).compile(of or vocabulary())


@dataclass(frozen=True)
class Results:
    ids: list[list[int]]
    processor: ConstrainedSampling


def generate(
    model: Any,
    constraint: Any,
    backend: Any,
    *,
    prompts: Sequence[Sequence[int]] = ((1, 3, 0), (0, 2, 0)),
    of: Vocabulary | None = None,
    before: Sequence[Any] = (),
    law: Any = None,
    **options: Any,
) -> Results:
    processor = ConstrainedSampling(
        constraint, of or vocabulary(), backend=backend, **{"seed": 3, **(law or {})}
    )
    out = model.generate(
        torch.tensor(prompts),
        **{"do_sample": True, "max_new_tokens": 7, **options},
        logits_processor=[*before, processor],
    )
    return Results(out.tolist(), processor)


def agree(ours: Results, host: Results) -> None:
    """The same tokens, weights within the kernels' error, all else equal."""
    assert ours.ids == host.ids
    assert ours.processor.status == host.processor.status
    assert ours.processor.reasons == host.processor.reasons
    assert ours.processor.checks == host.processor.checks
    weights = ours.processor.log_weights, host.processor.log_weights
    assert weights[0].dtype == np.float64
    np.testing.assert_allclose(*weights, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("law", "options"),
    [
        ({}, {"num_return_sequences": 3}),
        ({"temperature": 0.3, "sampler": "mask"}, {}),
        ({"temperature": 2.5, "seed": 2**64 - 5}, {}),
        ({}, {"do_sample": False}),
        ({"temperature": 0.0}, {}),
        ({"top_k": 3, "truncation": "target"}, {}),
        ({"top_k": 2, "truncation": "after_mask"}, {}),
        ({"top_p": 0.8, "truncation": "target", "temperature": 1.5}, {}),
        ({"top_p": 0.8, "truncation": "after_mask"}, {}),
        ({"min_p": 0.2, "truncation": "target"}, {}),
        ({"min_p": 0.2, "truncation": "after_mask"}, {}),
    ],
    ids=str,
)
def test_generate_gives_what_the_host_path_gives(model: Any, law: Any, options: Any) -> None:
    matcher = choice(*TEXTS)
    ours = generate(model, matcher, "triton", law=law, **options)
    agree(ours, generate(model, matcher, "numpy", law=law, **options))


def test_rows_end_at_different_times_and_padding_follows(model: Any) -> None:
    matchers = [choice("a"), choice("cccc")]
    ours = generate(model, matchers, "triton")
    agree(ours, generate(model, matchers, "numpy"))
    assert ours.ids[0][3:] == [0, EOS, PAD, PAD, PAD]
    assert ours.processor.status == ["finished", "finished"]


def test_end_of_sequence_ids_are_drawn_as_the_first(model: Any) -> None:
    """Their masses add, whichever of them was drawn."""
    of = vocabulary((EOS, PAD))
    matcher = choice("a", "ab", "b", of=of)
    options = {"num_return_sequences": 4, "eos_token_id": [EOS, PAD]}
    ours = generate(model, matcher, "triton", of=of, **options)
    agree(ours, generate(model, matcher, "numpy", of=of, **options))
    ends = [row[3:][row[3:].index(EOS)] for row in ours.ids]
    assert ends == [EOS] * 8


class Spoil:
    """Stands in for a model whose second step is not finite in row 1, or allows too little."""

    def __init__(self, value: float, tokens: Any = slice(None)) -> None:
        self.value = value
        self.tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == 4:
            scores[1, self.tokens] = self.value
        return scores


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (Spoil(torch.nan), "NaN"),
        (Spoil(torch.inf, PAD), "NaN or +inf"),
        (Spoil(-torch.inf, [0, 1, 2]), "any probability"),
        (Spoil(-torch.inf), "any probability"),
    ],
    ids=lambda x: str(getattr(x, "value", x)),
)
def test_a_row_that_cannot_draw_is_dead(model: Any, spoil: Spoil, reason: str) -> None:
    matcher = choice("aab")
    ours = generate(model, matcher, "triton", before=[spoil])
    agree(ours, generate(model, matcher, "numpy", before=[spoil]))
    assert ours.processor.status == ["finished", "dead"]
    assert reason in ours.processor.reasons[1]
    assert ours.processor.log_weights[1] == -np.inf


@dataclass(frozen=True)
class Altered:
    """A matcher that is another one in one respect."""

    inner: Matcher
    instead: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return self.instead.get(name, getattr(self.inner, name))


def unknowing(*texts: str) -> Any:
    """Does not know how to finish, so that its rows are cut off."""
    return Altered(choice(*texts), {"tokens_to_finish": lambda state: None})


def test_a_row_cut_off_by_the_limit_is_length(model: Any) -> None:
    matchers = [unknowing("ccccc"), unknowing("ab", "abc", "ccccc")]
    ours = generate(model, matchers, "triton", max_new_tokens=3)
    agree(ours, generate(model, matchers, "numpy", max_new_tokens=3))
    assert "length" in ours.processor.status


def test_a_matcher_that_fails_is_a_dead_row(model: Any) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("the user's own bug")

    matchers = [choice("aab"), Altered(choice("aab"), {"mask": fail})]
    ours = generate(model, matchers, "triton")
    agree(ours, generate(model, matchers, "numpy"))
    assert ours.processor.status == ["finished", "dead"]
    assert "user's own bug" in ours.processor.reasons[1]
    # A fault in `advance` is met one step later than on the host: the token was drawn and stands.
    matchers[1] = Altered(unknowing("aab"), {"advance": fail})
    late = generate(model, matchers, "triton").processor
    host = generate(model, matchers, "numpy").processor
    assert late.status == host.status == ["finished", "dead"]
    assert late.reasons == host.reasons
    assert late.log_weights[1] == host.log_weights[1] == -np.inf


def test_rows_that_only_awrs_serves_are_drawn_on_the_host(model: Any) -> None:
    bare = Altered(choice(*TEXTS), {"has_mask": False})
    matchers = [bare, choice(*TEXTS)]
    options = {"num_return_sequences": 2}
    ours = generate(model, matchers, "triton", **options)
    agree(ours, generate(model, matchers, "numpy", **options))
    assert min(ours.processor.checks[:2]) > 0 and ours.processor.checks[2:] == [0, 0]
    alone = generate(model, choice(*TEXTS), "triton", law={"sampler": AWRS()})
    agree(alone, generate(model, choice(*TEXTS), "numpy", law={"sampler": AWRS()}))


def test_beams_are_masked_on_the_host(model: Any) -> None:
    options = {"num_beams": 2, "do_sample": False}
    ours = generate(model, choice(*TEXTS), "triton", **options)
    assert ours.ids == generate(model, choice(*TEXTS), "numpy", **options).ids


WIDE = 4500
"""A row of three blocks, the last of them not whole."""


def wide_vocabulary() -> Vocabulary:
    return Vocabulary([*(b"%d" % i for i in range(WIDE - 1)), b""], eos_ids=[WIDE - 1])


def decode(
    processor: Any,
    logits: torch.Tensor,  # [steps, B, V]
    generation_config: Any,
    call: Callable[..., Any] = lambda processor, ids, scores: processor(ids, scores),
) -> torch.Tensor:
    """A decoding loop on given logits."""
    ids = torch.arange(logits.shape[1])[:, None] % 4
    for scores in logits:
        forced = call(processor, ids, scores.clone())
        assert forced.dtype == logits.dtype and torch.isfinite(forced).sum() == len(ids)
        ids = torch.cat((ids, forced.argmax(dim=1, keepdim=True)), dim=1)
    return ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_several_blocks_in_any_precision(dtype: torch.dtype) -> None:
    of = wide_vocabulary()
    matcher = Regex("[1-9][0-9]{3,11}").compile(of)
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (3, 3, WIDE))).to(dtype)
    law = {"temperature": 0.7}
    config = GenerationConfig(do_sample=True, max_length=20, eos_token_id=WIDE - 1, **law)
    found = []
    for backend in ("triton", "numpy"):
        processor = ConstrainedSampling(matcher, of, seed=9, backend=backend, **law)
        found.append(Results(decode(processor, logits, config).tolist(), processor))
    agree(*found)


def test_float64_rows_are_drawn_on_the_host() -> None:
    of = vocabulary()
    logits = torch.zeros(2, 1, 6, dtype=torch.float64)
    config = GenerationConfig(do_sample=True, max_length=20, eos_token_id=EOS)
    processor = ConstrainedSampling(choice("ab"), of, backend="triton")
    decode(processor, logits, config)
    assert processor.log_weights.tolist() != [0.0]


def test_results_may_be_read_at_any_time(model: Any) -> None:
    """Reading settles a step, and the next one goes on from there."""
    seen: list[tuple[Any, ...]] = []

    class Reader:
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append((processor.status, processor.log_weights.tolist()))
            return scores

    matcher = choice(*TEXTS)
    processor = ConstrainedSampling(matcher, vocabulary(), seed=3, backend="triton")
    options = {"do_sample": True, "max_new_tokens": 7, "num_return_sequences": 2}
    ids = torch.tensor([[1, 3, 0]])
    out = model.generate(ids, **options, logits_processor=[Reader(), processor])
    agree(
        Results(out.tolist(), processor),
        generate(model, matcher, "numpy", prompts=[(1, 3, 0)], num_return_sequences=2),
    )
    assert seen[0] == ([], []) and seen[1][0] == ["running", "running"]
    assert np.isfinite(seen[1][1]).all() and processor.status == ["finished"] * 2


def test_rows_must_go_on_with_the_tokens_drawn() -> None:
    config = GenerationConfig(do_sample=True, max_length=10, eos_token_id=EOS)

    def step(processor: Any, generation_config: Any, ids: list[list[int]]) -> Any:
        return processor(torch.tensor(ids), torch.zeros(2, 6))

    processor = ConstrainedSampling(choice("aab"), vocabulary(), backend="triton")
    step(processor, config, [[1], [3]])
    for ids in ([[1, 3], [3, 0]], [[3, 0], [1, 0]]):
        with pytest.raises(StrategyError, match="do not continue"):
            step(processor, config, ids)
    step(processor, config, [[1, 0], [3, 0]])
    assert processor.status == ["running", "running"]


AWAITED = {"item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "is_nonzero"}
SIZED = {"nonzero", "unique", "masked_select", "argwhere", "equal", "allclose"}
BUILT = {"tensor", "as_tensor"}  # from numbers of the host: on a device by a copy that is awaited


class Waits(TorchFunctionMode):
    """Names what makes the host wait for a CUDA device, if these tensors were on one.

    What Triton does to launch a kernel is left out: its interpreter reads tensors on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.__name__
        waits = name in AWAITED | SIZED | {"new_tensor"} or (name in BUILT and "device" in kwargs)
        if name in ("to", "copy_") and not kwargs.get("non_blocking", False):
            # In the kernels' wrappers: to the device of the logits, where it is already.
            device = any(
                isinstance(each, (str, torch.device)) for each in (*args, *kwargs.values())
            )
            waits = name == "copy_" or (device and not called_by("midstream.kernels.triton"))
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            waits = any(getattr(each, "dtype", None) == torch.bool for each in index)
        if not waits or self.inside or called_by("triton."):
            return func(*args, **kwargs)
        self.found.append(name)
        self.inside = True
        try:
            return func(*args, **kwargs)
        finally:
            self.inside = False


class HiddenWaits(TorchDispatchMode):
    """The same for operations that others are made of."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SIZED | {"_local_scalar_dense", "_unique2"} and not self.waits.inside:
            if not called_by("triton."):
                self.waits.found.append(name)
        return func(*args, **(kwargs or {}))


def called_by(module: str) -> bool:
    """Whether a module of that name, or one that begins so, is at work."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(module):
            return True
        frame = frame.f_back
    return False


def waits_of(work: Callable[[], Any]) -> tuple[Any, list[str]]:
    waits = Waits()
    with HiddenWaits(waits), waits:
        result = work()
    return result, waits.found


class Counted:
    """A processor whose waits are counted, step by step."""

    def __init__(self, processor: ConstrainedSampling) -> None:
        self.processor = processor
        self.steps: list[list[str]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced, waits = waits_of(lambda: self.processor(input_ids, scores))
        self.steps.append(waits)
        return forced


@pytest.mark.parametrize(
    "law",
    [{}, {"temperature": 0.0}, {"top_p": 0.9, "truncation": "after_mask"}],
    ids=str,
)
def test_a_step_waits_once_for_the_device(model: Any, law: Any) -> None:
    """The first for the prompts, each later one for the tokens that its matchers need."""
    processor = ConstrainedSampling(choice(*TEXTS), vocabulary(), seed=3, backend="triton", **law)
    counted = Counted(processor)
    batch = {
        "input_ids": torch.tensor([[PAD, 1, 3], [1, 3, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    }
    out = model.generate(**batch, do_sample=True, max_new_tokens=7, logits_processor=[counted])
    assert out.shape[1] > 5
    assert counted.steps == [["tolist"], *[["cpu"]] * (out.shape[1] - 4)]
    status, waits = waits_of(lambda: processor.status)
    assert status == ["finished"] * 2 and waits == ["cpu"]
    assert waits_of(lambda: processor.log_weights)[1] == []


def test_the_count_sees_what_waits(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: a comparison read by itself, a mask sent with a wait, rows by AWRS."""
    x = torch.arange(4)
    for work in (
        lambda: bool((x == x).all()),
        lambda: int(x[0]),
        lambda: x[x > 2],
        lambda: (x > 2).nonzero(),
        lambda: x.to("cpu"),
        lambda: torch.empty(4).copy_(x),
        lambda: torch.tensor([1, 2], device=x.device),
        lambda: x.new_tensor([1, 2]),
        lambda: torch.masked_select(x, x > 1),
        lambda: x.sum().item(),
    ):
        assert len(waits_of(work)[1]) == 1
    for work in (
        lambda: x.to("cpu", non_blocking=True),
        lambda: x.to(torch.float32),
        lambda: x[1:],
    ):
        assert not waits_of(work)[1]
    honest = SampledRows.goes_on

    def compared_first(self: Any, input_ids: torch.Tensor, last_ids: torch.Tensor) -> bool:
        return bool((input_ids[:, :-1] == last_ids).all()) and honest(self, input_ids, last_ids)

    monkeypatch.setattr(SampledRows, "goes_on", compared_first)
    counted = Counted(ConstrainedSampling(choice("aab"), vocabulary(), backend="triton"))
    ids = torch.tensor([[1, 3]])
    model.generate(ids, do_sample=True, max_new_tokens=7, logits_processor=[counted])
    assert all(len(step) == 2 for step in counted.steps[1:]) and len(counted.steps) > 2
    monkeypatch.undo()
    awrs = ConstrainedSampling(choice("aab"), vocabulary(), sampler="awrs", backend="triton")
    counted = Counted(awrs)
    model.generate(ids, do_sample=True, max_new_tokens=7, logits_processor=[counted])
    assert all(len(step) > 1 for step in counted.steps)
