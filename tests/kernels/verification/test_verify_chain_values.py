"""Chains: values, shapes, dead ends, and wrong arguments."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from midstream.kernels.bitmask import pack_mask, unpack_mask
from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import NOT_FINITE, NOTHING_ALLOWED, OK, masked_sample
from midstream.kernels.verify_chain import verify_chain

METHODS = ["token", "block"]


def batch(rows: int, length: int, size: int, seed: int = 0) -> dict[str, Any]:
    """Arguments of `verify_chain` for float32 logits with masks and drafts from q."""
    rng = np.random.default_rng(seed)
    target = (rng.normal(size=(rows, length + 1, size)) * 2).astype(np.float32)
    draft = (target[:, :-1] + rng.normal(size=(rows, length, size))).astype(np.float32)
    allowed = rng.random((rows, length + 1, size)) < 0.8
    allowed[..., 0] = True
    noise = rng.random((rows * length, 2))
    tokens = masked_sample(draft.reshape(-1, size), None, noise).token.reshape(rows, length)
    return {
        "target_logits": target,
        "draft_tokens": tokens,
        "draft_logits": draft,
        "noise": rng.random((rows, length + 1, 2)),
        "mask": np.stack([np.stack([pack_mask(a) for a in each]) for each in allowed]),
    }


def fields(verdict: Any) -> list[np.ndarray]:
    return [np.asarray(getattr(verdict, name)) for name in verdict.__slots__]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [40, 4999])
def test_a_request_is_the_same_in_any_batch_and_place(method: Any, size: int) -> None:
    arguments = batch(7, 3, size)
    whole = fields(verify_chain(**arguments, method=method))
    order = np.random.default_rng(5).permutation(7)
    moved = verify_chain(**{name: a[order] for name, a in arguments.items()}, method=method)
    for one, other in zip(fields(moved), whole, strict=True):
        assert (one == other[order]).all()
    alone = verify_chain(**{name: a[4:5] for name, a in arguments.items()}, method=method)
    for one, other in zip(fields(alone), whole, strict=True):
        assert (one[0] == other[4]).all()


def test_without_drafts_it_is_masked_sampling() -> None:
    arguments = batch(20, 0, 5000)
    verdict = verify_chain(**arguments, temperature=0.7)
    sample = masked_sample(
        arguments["target_logits"][:, 0],
        arguments["mask"][:, 0],
        arguments["noise"][:, 0],
        temperature=0.7,
    )
    assert (verdict.token == sample.token).all()
    assert not verdict.accepted.any()
    assert verdict.accept_prob.shape == (20, 0)
    np.testing.assert_allclose(verdict.log_p, sample.log_p, atol=1e-9)
    np.testing.assert_allclose(verdict.log_weight[:, 0], sample.log_weight, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_keys_are_uniforms(method: Any) -> None:
    arguments = batch(5, 3, 50)
    keys = Keys(np.arange(5), np.full(5, 7), np.arange(5) + 2, purpose=5, first=1)
    given = verify_chain(**{**arguments, "noise": keys.uniforms(4)}, method=method)
    for one, other in zip(
        fields(verify_chain(**{**arguments, "noise": keys}, method=method)),
        fields(given),
        strict=True,
    ):
        assert (one == other).all()


@pytest.mark.parametrize("method", METHODS)
def test_tensors_give_what_arrays_give(method: Any) -> None:
    torch = pytest.importorskip("torch")
    arguments = batch(4, 3, 300)
    arrays = fields(verify_chain(**arguments, method=method))
    tensors = {name: torch.from_numpy(a.copy()) for name, a in arguments.items()}
    tensors["mask"] = torch.from_numpy(arguments["mask"].view(np.int32))
    verdict = verify_chain(**tensors, method=method)
    assert isinstance(verdict.token, torch.Tensor)
    for one, other in zip(fields(verdict), arrays, strict=True):
        assert (one == other).all()
    half = {**tensors, "target_logits": tensors["target_logits"].bfloat16()}
    rounded = {**arguments, "target_logits": half["target_logits"].float().numpy()}
    for one, other in zip(
        fields(verify_chain(**half)), fields(verify_chain(**rounded)), strict=True
    ):
        assert (one == other).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_draft_equal_to_the_target_is_kept(method: Any) -> None:
    arguments = batch(50, 3, 200)
    equal = {
        **arguments,
        "draft_logits": arguments["target_logits"][:, :-1],
        "mask": None,
    }
    verdict = verify_chain(**equal, method=method)
    assert (verdict.accepted == 3).all()
    assert (verdict.accept_prob == 1.0).all()
    # Had a test failed by rounding, an all-zero residual gives a token of p and no NaN.
    never = np.zeros((50, 4, 2))
    never[:, 1:, 0] = 1.0
    verdict = verify_chain(**{**equal, "noise": never}, method=method)
    assert (verdict.accepted == 0).all()
    assert (verdict.token >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_disjoint_supports_keep_nothing(method: Any) -> None:
    arguments = batch(30, 2, 64)
    target, draft = arguments["target_logits"].copy(), arguments["draft_logits"].copy()
    target[..., 32:], draft[..., :32] = -np.inf, -np.inf
    tokens = np.full((30, 2), 40)
    verdict = verify_chain(target, tokens, draft, arguments["noise"] * 0, method=method)
    assert not verdict.accepted.any()
    assert (verdict.token < 32).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_padded_vocabulary_changes_nothing(method: Any) -> None:
    arguments = batch(20, 2, 70)
    arguments["mask"] = None

    def padded(logits: np.ndarray) -> np.ndarray:
        return np.pad(logits, [(0, 0), (0, 0), (0, 58)], constant_values=-np.inf)

    plain = verify_chain(**arguments, method=method)
    wide = {name: padded(arguments[name]) for name in ("target_logits", "draft_logits")}
    wider = verify_chain(**{**arguments, **wide}, method=method)
    assert (plain.token == wider.token).all()
    assert (plain.accepted == wider.accepted).all()
    beyond = verify_chain(**{**arguments, "draft_tokens": np.full((20, 2), 70)}, method=method)
    assert not beyond.accepted.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("with_draft", [True, False])
def test_greedy_targets(method: Any, with_draft: bool) -> None:
    arguments = batch(40, 3, 90)
    allowed = np.stack([[unpack_mask(m, 90) for m in masks] for masks in arguments["mask"]])
    best = np.where(allowed, arguments["target_logits"], -np.inf).argmax(axis=-1)
    arguments["draft_tokens"][:20, 0] = best[:20, 0]
    arguments["draft_tokens"][:10, 1] = best[:10, 1]
    arguments["draft_logits"] = arguments["draft_logits"] if with_draft else None
    verdict = verify_chain(**arguments, temperature=0.0, method=method)
    matches = (arguments["draft_tokens"] == best[:, :3]).cumprod(axis=1).sum(axis=1)
    assert (verdict.accepted == matches).all()
    assert (verdict.token == best[np.arange(40), matches]).all()
    warm = verify_chain(**arguments, temperature=1.0, method=method)
    np.testing.assert_array_equal(verdict.log_weight, warm.log_weight)


def test_log_weights_are_those_of_the_rows() -> None:
    arguments = batch(6, 2, 3000)
    temperature = np.linspace(0.05, 2.0, 6)
    verdict = verify_chain(**arguments, temperature=temperature)
    for b, i in itertools.product(range(6), range(3)):
        x = arguments["target_logits"][b, i].astype(np.float64) / temperature[b]
        allowed = unpack_mask(arguments["mask"][b, i], 3000)
        weight = logsumexp(x[allowed]) - logsumexp(x)
        assert verdict.log_weight[b, i] == pytest.approx(weight, abs=2e-6)
        if i == verdict.accepted[b]:
            log_p = x[verdict.token[b]] - logsumexp(x)
            assert verdict.log_p[b] == pytest.approx(log_p, abs=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_dead_rows_are_values(method: Any) -> None:
    arguments = batch(4, 2, 60)
    arguments["draft_logits"] = None
    certain = np.full((4, 3, 60), -np.inf, np.float32)
    np.put_along_axis(certain[:, :2], arguments["draft_tokens"][..., None], 0.0, axis=2)
    certain[:, 2] = 0.0
    certain[1, 0] = np.nan
    certain[2, 1, 7] = np.inf
    mask = np.full((4, 3, 2), 0xFFFFFFFF, np.uint32)
    mask[3, 2] = 0
    verdict = verify_chain(**{**arguments, "target_logits": certain, "mask": mask}, method=method)
    assert verdict.status.tolist() == [OK, NOT_FINITE, NOT_FINITE, NOTHING_ALLOWED]
    assert verdict.accepted.tolist() == [2, 0, 1, 2]
    assert verdict.token[1:].tolist() == [-1, -1, -1]
    assert np.isneginf(verdict.log_p[1:]).all()
    assert np.isneginf(verdict.log_weight[[1, 2, 3], [0, 1, 2]]).all()


def test_a_token_that_is_not_allowed_never_comes_out() -> None:
    arguments = batch(300, 2, 40)
    arguments["noise"][:, 1:] = 0.0  # the most willing tests
    for method in METHODS:
        verdict = verify_chain(**arguments, method=method)
        for b in range(300):
            text = [*arguments["draft_tokens"][b, : verdict.accepted[b]], verdict.token[b]]
            for i, token in enumerate(text):
                assert unpack_mask(arguments["mask"][b, i], 40)[token]


BAD = {
    "target_logits": np.zeros((2, 3, 4), np.int32),
    "draft_tokens": np.zeros((2, 3), np.int64),
    "draft_logits": np.zeros((2, 3, 4), np.float32),
    "noise": np.zeros((2, 2, 2)),
    "mask": np.zeros((2, 3, 1), np.int64),
    "temperature": -1.0,
    "draft_temperature": np.nan,
    "method": "both",
    "backend": "triton",
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_arguments_are_named(name: str) -> None:
    arguments = batch(2, 2, 4)
    verify_chain(**arguments)
    with pytest.raises(ValueError, match=f"{name}: got"):
        verify_chain(**{**arguments, name: BAD[name]})


def test_a_target_without_rows_is_named() -> None:
    for wrong in (np.zeros((2, 4), np.float32), np.zeros((2, 0, 4), np.float32), [[0.0]]):
        with pytest.raises(ValueError, match="target_logits: got"):
            verify_chain(**{**batch(2, 2, 4), "target_logits": wrong})


def test_no_requests() -> None:
    verdict = verify_chain(**{name: a[:0] for name, a in batch(1, 2, 9).items()})
    assert verdict.token.shape == (0,)
    assert verdict.log_weight.shape == (0, 3)
