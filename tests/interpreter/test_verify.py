"""Verification in the interpreter against numpy, which is enumerated elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import NOT_FINITE, NOTHING_ALLOWED, OK
from midstream.kernels.verify_chain import verify_chain
from midstream.kernels.verify_tree import verify_tree

TOLERANCE = 2e-6
NEAR = 1e-6
PARENTS = [-1, -1, 0, 0, 1, -1]
Arguments = dict[str, Any]
Verify = Callable[..., Any]

CHAINS = ["token", "block"]
TREES = ["rrs", "rrs_with_replacement", "target_walk"]


def arguments_of(verify: Verify, requests: int, size: int, seed: int, drafts: str) -> Arguments:
    """Random float32 logits, masks and drafts. drafts: sampled or given."""
    rng = np.random.default_rng(seed)
    tree = verify is verify_tree
    nodes = len(PARENTS) if tree else 3
    target = (rng.normal(size=(requests, nodes + 1, size)) * 2).astype(np.float32)
    draft = (target + rng.normal(size=target.shape)).astype(np.float32)
    allowed = rng.random(target.shape) < 0.9
    allowed[..., 0] = True
    order = np.argsort(-draft[:, 0] - rng.gumbel(size=(requests, size)), axis=1)
    tokens = order[:, :nodes]
    if not tree:
        draft = draft[:, :-1]
        tokens = (draft + rng.gumbel(size=draft.shape)).argmax(axis=2)
    arguments: Arguments = {
        "target_logits": target,
        "tokens" if tree else "draft_tokens": tokens,
        "draft_logits": draft if drafts == "sampled" else None,
        # Of float32 precision, as they come from Philox.
        "noise": rng.random((requests, nodes + 1, 2), np.float32).astype(np.float64),
        "mask": np.stack([[pack_mask(a) for a in each] for each in allowed]),
    }
    return {**arguments, "parents": np.tile(PARENTS, (requests, 1))} if tree else arguments


def on_device(verify: Verify, arguments: Arguments, **options: Any) -> Any:
    """The same arguments as tensors, through the kernels."""
    tensors = {
        name: torch.tensor(a.view(np.int32) if name == "mask" else a)
        if isinstance(a, np.ndarray)
        else a
        for name, a in arguments.items()
    }
    return verify(**tensors, **options, backend="triton")


def fields(verdict: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(verdict, name)) for name in verdict.__slots__}


def choices(verdict: Any) -> np.ndarray:
    """What was decided, a row for each request."""
    names = [name for name in ("path", "accepted", "token") if name in verdict.__slots__]
    columns = [np.asarray(getattr(verdict, n)).reshape(len(verdict.token), -1) for n in names]
    return np.concatenate(columns, axis=1)


def moved(noise: np.ndarray) -> Iterator[np.ndarray]:
    """Noise with one number of each request a little smaller or larger."""
    for pair, word in np.ndindex(noise.shape[1:]):
        for step in (-NEAR, NEAR):
            other = noise.copy()
            other[:, pair, word] = (other[:, pair, word] + step).clip(0, 1 - 1e-9)
            yield other


def agree(verify: Verify, arguments: Arguments, **options: Any) -> int:
    """Assert that both say the same, except where a number lies near a boundary: how many do."""
    ours, oracle = on_device(verify, arguments, **options), verify(**arguments, **options)
    near = np.zeros(len(oracle.token), np.bool_)
    for noise in moved(arguments["noise"]):
        other = verify(**{**arguments, "noise": noise}, **options)
        near |= (choices(other) != choices(oracle)).any(axis=1)
    assert (choices(ours) == choices(oracle)).all(axis=1)[~near].all()
    for name, value in fields(oracle).items():
        mine = fields(ours)[name]
        assert mine.dtype == value.dtype, name
        np.testing.assert_allclose(mine[~near], value[~near], rtol=0, atol=TOLERANCE, err_msg=name)
    return int(near.sum())


@pytest.mark.parametrize("drafts", ["sampled", "given"])
@pytest.mark.parametrize("method", CHAINS)
def test_chains(method: str, drafts: str) -> None:
    arguments = arguments_of(verify_chain, 7, 90, 1, drafts)
    temperature = np.array([1.0, 0.5, 2.0, 0.05, 0.0, 1.0, 0.7])
    draft_temperature = np.array([1.0, 1.5, 0.7, 1.0, 1.0, 0.0, 0.7])
    near = agree(
        verify_chain,
        arguments,
        method=method,
        temperature=temperature,
        draft_temperature=draft_temperature,
    )
    assert near <= 1


@pytest.mark.parametrize(
    ("method", "drafts"),
    [*((method, "sampled") for method in TREES[:2]), *((method, "given") for method in TREES)],
)
def test_trees(method: str, drafts: str) -> None:
    arguments = arguments_of(verify_tree, 5, 30, 2, drafts)
    temperature = np.array([1.0, 0.5, 0.0, 0.05, 1.0])
    draft_temperature = np.array([1.0, 1.5, 1.0, 1.0, 0.0])
    near = agree(
        verify_tree,
        arguments,
        method=method,
        temperature=temperature,
        draft_temperature=draft_temperature,
    )
    assert near <= 1


@pytest.mark.parametrize(
    ("verify", "method"), [*((verify_chain, m) for m in CHAINS), *((verify_tree, m) for m in TREES)]
)
def test_rows_of_several_blocks(verify: Verify, method: str) -> None:
    """Three blocks, the last of one token, in which drafts and rejections fall."""
    drafts = "given" if method == "target_walk" else "sampled"
    arguments = arguments_of(verify, 2, 4097, 3, drafts)
    for logits in ("target_logits", "draft_logits"):
        if arguments[logits] is not None:
            arguments[logits][..., 4096] += 7.0
    assert agree(verify, arguments, method=method) <= 1


@pytest.mark.parametrize("method", CHAINS)
def test_enough_chains_to_meet_every_decision(method: str) -> None:
    arguments = arguments_of(verify_chain, 14, 12, 4, "sampled")
    assert agree(verify_chain, arguments, method=method) <= 1
    accepted = verify_chain(**arguments, method=method).accepted
    assert set(accepted.tolist()) == {0, 1, 2, 3}


def test_enough_trees_to_meet_every_decision() -> None:
    arguments = arguments_of(verify_tree, 10, 10, 5, "sampled")
    assert agree(verify_tree, arguments) <= 1
    verdict = verify_tree(**arguments)
    assert set(verdict.accepted.tolist()) == {0, 1, 2}
    assert (np.isfinite(verdict.accept_prob).sum(axis=1) == 3).any()  # three siblings were tested


def test_siblings_of_a_sharp_draft() -> None:
    """What earlier siblings leave of q lies far below what fp32 holds beside the whole."""
    arguments = arguments_of(verify_tree, 6, 10, 6, "sampled")
    arguments["draft_logits"] = np.broadcast_to(
        np.linspace(0, -60, 10, dtype=np.float32), (6, 7, 10)
    ).copy()
    arguments["tokens"][:] = [0, 1, 5, 6, 7, 2]
    arguments["noise"][:, 1:, 0] = 0.999
    assert agree(verify_tree, arguments) == 0
    tested = np.isfinite(verify_tree(**arguments).accept_prob[:, [0, 1, 5]])
    assert tested.sum() > 12


@pytest.mark.parametrize("method", CHAINS)
def test_where_chains_end_and_die(method: str) -> None:
    arguments = arguments_of(verify_chain, 9, 40, 7, "sampled")
    target, draft, tokens = (
        arguments[name] for name in ("target_logits", "draft_logits", "draft_tokens")
    )
    draft[:] = target[:, :-1]
    arguments["mask"] = np.full((9, 4, 2), 0xFFFFFFFF, np.uint32)
    tokens[:] = target[:, :-1].argmax(axis=2)
    tokens[0, 1] = -1
    tokens[1, 2] = 40
    draft[2, 1, 3] = np.nan
    target[3, 2, 7] = np.nan
    target[4, 1, 7] = np.inf
    arguments["mask"][5, 3] = 0
    target[6, 0] = -np.inf
    target[7, 1] = np.finfo(np.float32).min
    arguments["mask"] = arguments["mask"][..., :1]  # tokens from 32 on are not allowed
    tokens[:, 0] = target[:, 0, :32].argmax(axis=1)
    assert agree(verify_chain, arguments, method=method) == 0
    found = set(verify_chain(**arguments, method=method).status.tolist())
    assert found == {OK, NOTHING_ALLOWED, NOT_FINITE}


@pytest.mark.parametrize("method", TREES)
def test_where_trees_end_and_die(method: str) -> None:
    arguments = arguments_of(verify_tree, 6, 40, 8, "given")
    arguments["tokens"][:, 0] = arguments["target_logits"][:, 0].argmax(axis=1)
    arguments["target_logits"][:, 0] *= 4
    arguments["mask"] = None
    arguments["tokens"][0, 1] = -1
    arguments["tokens"][1, 0] = 40
    arguments["target_logits"][2, 1, 3] = np.nan
    arguments["target_logits"][3, 1] = -np.inf
    arguments["target_logits"][4, 0, 3] = np.inf
    if method != "target_walk":
        arguments["draft_logits"] = arguments["target_logits"] + 1
        arguments["draft_logits"][5, 0, 1] = np.nan
    assert agree(verify_tree, arguments, method=method) == 0
    found = set(verify_tree(**arguments, method=method).status.tolist())
    assert found == {OK, NOTHING_ALLOWED, NOT_FINITE}


def test_equal_laws_keep_everything() -> None:
    """Formed alike, p and q differ by nothing, and what is left is all zero without a NaN."""
    arguments = arguments_of(verify_chain, 2, 300, 9, "sampled")
    arguments["draft_logits"] = arguments["target_logits"][:, :-1].copy()
    arguments["mask"] = None
    for method in CHAINS:
        verdict = on_device(verify_chain, arguments, method=method)
        assert (verdict.accepted == 3).all()
        assert (verdict.accept_prob == 1).all()
        never = arguments["noise"].copy()
        never[:, 1:, 0] = 1.0
        rejected = on_device(verify_chain, {**arguments, "noise": never}, method=method)
        assert (rejected.accepted == 0).all()
        assert (rejected.token >= 0).all()


@pytest.mark.parametrize(
    ("verify", "method"), [(verify_chain, "block"), (verify_chain, "token"), (verify_tree, "rrs")]
)
def test_a_request_is_the_same_in_any_batch_and_place(verify: Verify, method: str) -> None:
    arguments = arguments_of(verify, 4, 200, 10, "sampled")
    keys = Keys(np.arange(4) + 2**40, np.arange(4), np.full(4, 3), purpose=5)
    whole = fields(on_device(verify, {**arguments, "noise": keys}, method=method))
    for place in (0, 2):
        alone = {n: a[place : place + 1] for n, a in arguments.items()}
        words = (each[place : place + 1] for each in (keys.seed, keys.sequence, keys.position))
        lone = on_device(verify, {**alone, "noise": Keys(*words, purpose=5)}, method=method)
        for name, value in fields(lone).items():
            assert np.array_equal(value[0], whole[name][place], equal_nan=True), name


@pytest.mark.parametrize(("verify", "method"), [(verify_chain, "block"), (verify_tree, "rrs")])
def test_keys_are_their_uniforms(verify: Verify, method: str) -> None:
    arguments = arguments_of(verify, 3, 50, 11, "sampled")
    keys = Keys(np.arange(3) + 2**40, np.arange(3), np.arange(3), purpose=5, first=3)
    given = keys.uniforms(arguments["noise"].shape[1])
    one = fields(on_device(verify, {**arguments, "noise": keys}, method=method))
    other = fields(on_device(verify, {**arguments, "noise": given}, method=method))
    assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("verify", [verify_chain, verify_tree])
def test_types_and_strides(verify: Verify, dtype: torch.dtype) -> None:
    """Half precision, and rows at a distance that is a multiple of nothing."""
    arguments = arguments_of(verify, 3, 77, 12, "sampled")
    half = {}
    for name in ("target_logits", "draft_logits"):
        wide = torch.zeros(*arguments[name].shape[:2], 101, dtype=dtype)
        wide[..., 5:82] = torch.tensor(arguments[name]).to(dtype)
        half[name] = wide[..., 5:82]
        arguments[name] = half[name].float().numpy()
    oracle = fields(verify(**arguments))
    for name, value in fields(on_device(verify, {**arguments, **half})).items():
        np.testing.assert_allclose(value, oracle[name], rtol=0, atol=TOLERANCE, err_msg=name)


def test_nothing_to_verify() -> None:
    for verify in (verify_chain, verify_tree):
        arguments = arguments_of(verify, 1, 9, 13, "sampled")
        none = {name: a[:0] for name, a in arguments.items()}
        assert on_device(verify, none).token.shape == (0,)
        roots = {name: a[:, :0] for name, a in arguments.items()}
        for name in ("target_logits", "noise", "mask"):
            roots[name] = arguments[name][:, :1]
        if verify is verify_tree:
            roots["draft_logits"] = arguments["draft_logits"][:, :1]
        assert (on_device(verify, roots).token.numpy() == verify(**roots).token).all()


class _Forbid(TorchDispatchMode):
    """Fails on what would wait for the device."""

    waits = ("_local_scalar_dense", "item", "nonzero", "equal", "unique", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.waits, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("verify", "method"),
    [(verify_chain, "block"), (verify_tree, "rrs"), (verify_tree, "target_walk")],
)
def test_nothing_waits_for_the_device(verify: Verify, method: str) -> None:
    drafts = "given" if method == "target_walk" else "sampled"
    arguments = arguments_of(verify, 2, 40, 14, drafts)
    arguments["noise"] = Keys(*(torch.arange(2) for _ in range(3)), purpose=5)
    heat = torch.tensor([0.5, 1.0])
    with _Forbid():
        verdict = on_device(
            verify, arguments, method=method, temperature=heat, draft_temperature=heat
        )
    assert (verdict.status == OK).all()


WRONG: list[tuple[str, Any]] = [
    ("target_logits", torch.zeros(2, 4, 9, dtype=torch.float64)),
    ("draft_logits", torch.zeros(2, 9, 3).mT),
    ("draft_logits", torch.zeros(2, 3, 9, device="meta")),
    ("noise", torch.zeros(2, 3, 2)),
    ("mask", torch.zeros(2, 4, 1, dtype=torch.int64)),
    ("temperature", 1e-9),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_arguments_are_named(name: str, value: Any) -> None:
    arguments = arguments_of(verify_chain, 2, 9, 15, "sampled")
    with pytest.raises(ValueError, match=f"^{name}: got"):
        on_device(verify_chain, {**arguments, name: value})
