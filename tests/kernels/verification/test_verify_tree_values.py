"""Trees: values, shapes, dead ends, and wrong arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from midstream.kernels.bitmask import pack_mask, unpack_mask
from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import NOT_FINITE, NOTHING_ALLOWED, OK, masked_sample
from midstream.kernels.verify_chain import verify_chain
from midstream.kernels.verify_tree import verify_tree

METHODS = ["rrs", "rrs_with_replacement", "target_walk"]
PARENTS = [-1, -1, 0, 0, 1, 2, -1]


def batch(rows: int, size: int, method: str = "rrs", seed: int = 0) -> dict[str, Any]:
    """Arguments of `verify_tree` for float32 logits with masks, children of one node distinct."""
    rng = np.random.default_rng(seed)
    count = len(PARENTS)
    target = (rng.normal(size=(rows, count + 1, size)) * 2).astype(np.float32)
    draft = (target + rng.normal(size=target.shape)).astype(np.float32)
    allowed = rng.random(target.shape) < 0.8
    allowed[..., 0] = True
    tokens = np.stack([rng.choice(size, count, replace=False) for _ in range(rows)])
    if rows:
        tokens[:, 0] = target[:, 0].argmax(axis=1)
    return {
        "target_logits": target,
        "tokens": tokens.reshape(rows, count),
        "parents": np.tile(PARENTS, (rows, 1)),
        "draft_logits": None if method == "target_walk" else draft,
        "noise": rng.random((rows, count + 1, 2)),
        "mask": np.stack([np.stack([pack_mask(a) for a in each]) for each in allowed]),
        "method": method,
    }


def rows_of(arguments: dict[str, Any], rows: Any) -> dict[str, Any]:
    return {name: a[rows] if isinstance(a, np.ndarray) else a for name, a in arguments.items()}


def fields(verdict: Any) -> list[np.ndarray]:
    return [np.asarray(getattr(verdict, name)) for name in verdict.__slots__]


def same(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(fields(one), fields(other), strict=True)
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [40, 4999])
def test_a_request_is_the_same_in_any_batch_and_place(method: Any, size: int) -> None:
    arguments = batch(6, size, method)
    whole = fields(verify_tree(**arguments))
    order = np.random.default_rng(5).permutation(6)
    moved = fields(verify_tree(**rows_of(arguments, order)))
    alone = fields(verify_tree(**rows_of(arguments, slice(4, 5))))
    for one, two, three in zip(whole, moved, alone, strict=True):
        assert np.array_equal(one[order], two, equal_nan=True)
        assert np.array_equal(one[4:5], three, equal_nan=True)


@pytest.mark.parametrize("with_draft", [True, False])
def test_a_tree_that_is_a_chain_is_a_chain(with_draft: bool) -> None:
    """The same tokens from the same numbers as token by token, the bonus token included."""
    rng = np.random.default_rng(3)
    target = (3 * rng.normal(size=(200, 4, 50))).astype(np.float32)
    draft = (target + 0.3 * rng.normal(size=target.shape)).astype(np.float32)
    tokens = target[:, :3].argmax(axis=2)
    noise = rng.random((200, 4, 2))
    parents = np.tile([-1, 0, 1], (200, 1))
    tree = verify_tree(target, tokens, parents, draft if with_draft else None, noise)
    chain = verify_chain(
        target, tokens, draft[:, :3] if with_draft else None, noise, method="token"
    )
    assert (tree.accepted == chain.accepted).all()
    assert (tree.token == chain.token).all()
    assert len(set(tree.accepted.tolist())) == 4
    tested = ~np.isnan(tree.accept_prob)
    np.testing.assert_allclose(tree.accept_prob[tested], chain.accept_prob[tested], atol=1e-12)
    assert (tree.log_weight[:, 0] == chain.log_weight[:, 0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_without_nodes_it_is_masked_sampling(method: Any) -> None:
    arguments = batch(20, 5000, method)
    root = {
        name: a[:, :1] if name in ("target_logits", "draft_logits", "noise", "mask") else a[:, :0]
        for name, a in arguments.items()
        if isinstance(a, np.ndarray)
    }
    verdict = verify_tree(**{"draft_logits": None, **root, "method": method})
    first = {name: root[name][:, 0] for name in ("target_logits", "mask", "noise")}
    sample = masked_sample(first["target_logits"], first["mask"], first["noise"])
    assert (verdict.token == sample.token).all()
    assert verdict.path.shape == (20, 0)
    np.testing.assert_allclose(verdict.log_p, sample.log_p, atol=1e-9)
    np.testing.assert_allclose(verdict.log_weight[:, 0], sample.log_weight, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_keys_are_uniforms(method: Any) -> None:
    arguments = batch(5, 50, method)
    keys = Keys(np.arange(5), np.full(5, 7), np.arange(5) + 2, purpose=5, first=1)
    given = verify_tree(**{**arguments, "noise": keys.uniforms(len(PARENTS) + 1)})
    assert same(verify_tree(**{**arguments, "noise": keys}), given)


@pytest.mark.parametrize("method", METHODS)
def test_tensors_give_what_arrays_give(method: Any) -> None:
    torch = pytest.importorskip("torch")
    arguments = batch(4, 300, method)
    tensors = {
        name: torch.from_numpy((a.view(np.int32) if name == "mask" else a).copy())
        for name, a in arguments.items()
        if isinstance(a, np.ndarray)
    }
    verdict = verify_tree(**{"draft_logits": None, **tensors, "method": method})
    assert isinstance(verdict.path, torch.Tensor)
    assert same(verdict, verify_tree(**arguments))


@pytest.mark.parametrize("method", METHODS)
def test_nodes_without_a_token_are_not_there(method: Any) -> None:
    arguments = batch(50, 40, method)
    for node in (1, 4):
        arguments["tokens"][:, node] = -1
    verdict = verify_tree(**arguments)
    assert not np.isin(verdict.path, (1, 4)).any()
    anywhere = arguments["parents"].copy()
    anywhere[:, 1] = 99
    assert same(verify_tree(**{**arguments, "parents": anywhere}), verdict)


@pytest.mark.parametrize("method", METHODS)
def test_greedy_targets(method: Any) -> None:
    """The longest path of most probable tokens that the tree holds."""
    arguments = batch(60, 8, method)
    best = np.stack(
        [
            [np.where(unpack_mask(m, 8), x, -np.inf).argmax() for m, x in zip(*each, strict=True)]
            for each in zip(arguments["mask"], arguments["target_logits"], strict=True)
        ]
    )
    verdict = verify_tree(**arguments, temperature=0.0)
    for b in range(60):
        path, at = [], -1
        for node, parent in enumerate(PARENTS):
            if parent == at and arguments["tokens"][b, node] == best[b, at + 1]:
                path.append(node)
                at = node
        assert verdict.path[b, : verdict.accepted[b]].tolist() == path
        assert verdict.token[b] == best[b, at + 1]
    assert verdict.accepted.max() > 1


def test_values_stand_on_the_path_alone() -> None:
    arguments = batch(80, 60)
    verdict = verify_tree(**arguments)
    rows = [
        masked_sample(x, m, np.zeros((8, 2)))
        for x, m in zip(arguments["target_logits"], arguments["mask"], strict=True)
    ]
    for b in range(80):
        nodes = verdict.path[b, : verdict.accepted[b]]
        passed = np.zeros(8, np.bool_)
        passed[[0, *(nodes + 1)]] = True
        assert (np.isnan(verdict.log_weight[b]) == ~passed).all()
        expected = rows[b].log_weight[passed]
        np.testing.assert_allclose(verdict.log_weight[b][passed], expected, atol=1e-9)
        assert not np.isnan(verdict.accept_prob[b][nodes]).any()
        last = 0 if nodes.size == 0 else nodes[-1] + 1
        logits = arguments["target_logits"][b, last].astype(np.float64)
        log_p = logits[verdict.token[b]] - np.log(np.exp(logits).sum())
        assert verdict.log_p[b] == pytest.approx(log_p, abs=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_dead_rows_are_values(method: Any) -> None:
    arguments = batch(4, 60, method)
    if method != "target_walk":
        arguments["draft_logits"] = None
    certain = np.full((4, 8, 60), -np.inf, np.float32)
    for node, parent in enumerate(PARENTS):
        certain[np.arange(4), parent + 1, arguments["tokens"][:, node]] = -1e3 * node
    mask = np.full((4, 8, 2), 0xFFFFFFFF, np.uint32)
    certain[1, 0] = np.nan
    certain[2, 1, 7] = np.inf
    mask[3, 3] = 0
    certain[:, 6] = 0.0
    verdict = verify_tree(**{**arguments, "target_logits": certain, "mask": mask})
    assert verdict.status.tolist() == [OK, NOT_FINITE, NOT_FINITE, NOTHING_ALLOWED]
    assert verdict.accepted.tolist() == [3, 0, 1, 2]
    assert verdict.path[3, :2].tolist() == [0, 2]
    assert verdict.token[1:].tolist() == [-1, -1, -1]
    assert np.isneginf(verdict.log_p[1:]).all()
    assert np.isneginf(verdict.log_weight[[1, 2, 3], [0, 1, 3]]).all()


def test_a_draft_row_without_a_law_has_no_children() -> None:
    arguments = batch(30, 40)
    arguments["draft_logits"][:, 0] = np.nan
    verdict = verify_tree(**arguments)
    assert not verdict.accepted.any()
    assert np.isnan(verdict.accept_prob).all()
    assert (verdict.token >= 0).all()


BAD = {
    "target_logits": np.zeros((2, 8, 4), np.int32),
    "tokens": np.zeros((2, 9), np.int64),
    "parents": np.zeros((2, 6), np.int64),
    "draft_logits": np.zeros((2, 7, 40), np.float32),
    "noise": np.zeros((2, 7, 2)),
    "mask": np.zeros((2, 7, 1), np.uint32),
    "temperature": -1.0,
    "draft_temperature": np.nan,
    "method": "both",
    "backend": "triton",
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_are_named(name: str) -> None:
    arguments = batch(2, 40)
    verify_tree(**arguments)
    with pytest.raises(ValueError, match=f"{name}: got"):
        verify_tree(**{**arguments, name: BAD[name]})


def test_a_parent_comes_before_its_children() -> None:
    arguments = batch(2, 40)
    arguments["parents"][1, 2] = 2
    with pytest.raises(ValueError, match="parents: got"):
        verify_tree(**arguments)
    with pytest.raises(ValueError, match="draft_logits: got"):
        verify_tree(**{**batch(2, 40), "method": "target_walk"})


def test_a_target_without_rows_is_named() -> None:
    for wrong in (np.zeros((2, 4), np.float32), np.zeros((2, 0, 4), np.float32), [[0.0]]):
        with pytest.raises(ValueError, match="target_logits: got"):
            verify_tree(**{**batch(2, 40), "target_logits": wrong})


def test_no_requests() -> None:
    verdict = verify_tree(**rows_of(batch(1, 9), slice(0)))
    assert verdict.path.shape == (0, len(PARENTS))
