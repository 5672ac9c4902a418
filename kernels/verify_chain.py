"""Verification of a chain of drafted tokens, token by token or as a block; exact for any draft.

Row i of a request's target logits is the model's after its first i drafted tokens, processed with
these as its history. The target law p of row i is softmax(logits / temperature) restricted to the
row's mask; temperature 0 is all mass on the largest allowed logit, the lowest id of equals, with
log_p and log_weight those of temperature 1. q of row i is softmax(draft_logits /
draft_temperature), the law that drafted token i was drawn from.

"token" (Leviathan, Kalman, Matias, arXiv 2211.17192): token i is kept with probability min(1, p/q),
the first that is not is replaced by a token of norm([p - q]+). "block" (Sun et al., arXiv
2403.10444): each length has a test of its own, the longest that passes is kept, which in the mean
are at least as many. After a chain kept whole comes a token of p. Either way the committed tokens
have the joint law prod p, whatever q is, under three conditions.

A drafted token stays in the chain whatever it is: one that is not allowed is kept with probability
0, and to drop it because of that biases what comes instead (unless drafts are deterministic). Where
a chain ends may depend on the text before alone.

`noise` is independent of the draft's noise: keys have another purpose.

Keys are of the round, `position` the number of tokens committed before it: a test of a later
position that failed was looked at, so that its number must not come again for that position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from midstream.kernels.acceptance import acceptance, block_acceptance, block_scales, excess
from midstream.kernels.backend import Backend, choose, like
from midstream.kernels.masked_sampling import OK
from midstream.kernels.verify_inputs import Inputs, check_inputs, numpy_inputs
from midstream.kernels.verify_rows import Chance, DraftRow, TargetRow, Uniforms

Method = Literal["token", "block"]


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """What became of each request's chain. Log-domain values are float64, in nats; arrays are
    of the kind of the logits.

    The tokens to commit are the first `accepted` drafted ones and then `token`; their log weight
    is the sum of log_weight[b, : accepted + 1].
    """

    accepted: Any  # int64 [B], how many drafted tokens are kept
    token: Any  # int64 [B], the token after them; -1 unless status is OK
    log_p: Any  # [B], log p(token) under its whole row, before the mask; -inf without a token
    accept_prob: Any  # float64 [B, K], what each test keeps with; 0 past a chain's end
    log_weight: Any  # [B, K + 1], log Z_allowed - log Z_all of each row; -inf of a dead one
    status: Any  # int8 [B], of the row that `token` is of


def verify_chain(
    target_logits: Any,  # [B, K + 1, V]
    draft_tokens: Any,  # [B, K]
    draft_logits: Any,  # [B, K, V] | None
    noise: Any,  # [B, K + 1, 2] | Keys
    *,
    mask: Any = None,  # [B, K + 1, W]
    temperature: Any = 1.0,  # scalar or [B]
    draft_temperature: Any = 1.0,  # scalar or [B]
    method: Method = "block",
    backend: Backend = "auto",
) -> ChainVerdict:
    """Keep the first drafted tokens and draw one more, so that all of them follow the target law.

    See the head of the module for the law and what it asks of the caller. draft_tokens: below 0
    from where a chain ends; so it does at a draft row with a NaN, a +inf or no mass. draft_logits
    None, or a draft_temperature of 0: drafts are a function of the text. A mask may be shorter than
    the row: tokens beyond are not allowed. noise: uniforms in [0, 1) or Keys of as many draws; pair
    0 draws the last token (a block of 2048, then the token), the first number of pair 1 + i tests
    drafted token i. A chain kept up to a row where nothing is allowed, or that has a NaN or a +inf,
    ends there without a token, which `status` tells. A request's result is the same bit for bit in
    any batch. Logits float32, float64, float16 or bfloat16, masks uint32 (as tensors int32), NumPy
    or torch; other types, shapes and temperatures are a ValueError.
    """
    if method not in ("token", "block"):
        raise ValueError(f"method: got {method!r}; accepted: token, block")
    arguments = target_logits, draft_tokens, draft_logits, noise, mask
    check_inputs(*arguments, last_is_drafted=False)
    if choose(target_logits, backend) == "triton":
        from midstream.kernels.triton.verify_chain import verify_chain as on_device

        return on_device(*arguments, temperature, draft_temperature, method)
    inputs = numpy_inputs(*arguments, temperature, draft_temperature)
    return _in_numpy(inputs, method, target_logits)


def _in_numpy(inputs: Inputs, method: Method, original: Any) -> ChainVerdict:
    requests, rows = inputs.target.shape[:2]
    accepted = np.zeros(requests, np.int64)
    token = np.full(requests, -1, np.int64)
    log_p = np.full(requests, -np.inf)
    accept_prob = np.zeros((requests, rows - 1))
    log_weight = np.empty((requests, rows))
    status = np.empty(requests, np.int8)
    for b in range(requests):
        target = [inputs.target_row(b, i) for i in range(rows)]
        draft = [inputs.draft_row(b, i) for i in range(rows - 1)]
        chance = Uniforms(inputs.pairs[b])
        tokens = inputs.tokens[b].tolist()
        accepted[b], token[b], tests = decide_chain(target, draft, tokens, method, chance)
        accept_prob[b, : len(tests)] = tests
        log_weight[b] = [row.log_weight for row in target]
        last = target[accepted[b]]
        status[b] = last.status
        if token[b] >= 0:
            log_p[b] = last.log_p(int(token[b]))
    results = accepted, token, log_p, accept_prob, log_weight, status
    return ChainVerdict(*(like(original, each) for each in results))


def decide_chain(
    target: Sequence[TargetRow],  # K + 1
    draft: Sequence[DraftRow],  # K
    tokens: Sequence[int],  # K
    method: Method,
    chance: Chance,
) -> tuple[int, int, list[float]]:
    """How many drafted tokens are kept, the token after them, and each test's probability."""
    length = _length(target, draft, tokens)
    log_p = [target[i].log_law(tokens[i]) for i in range(length)]
    log_q = [draft[i].log_law(tokens[i]) for i in range(length)]
    if method == "token":
        scales = [1.0] * (length + 1)
        tests = [acceptance(p, q) for p, q in zip(log_p, log_q, strict=True)]
        failed = (i for i in range(length) if not chance.keeps(i, tests[i]))
        accepted = next(failed, length)
    else:
        scales = block_scales(log_p, log_q)
        tests = _block_tests(target, draft, tokens, scales)
        passed = (i for i in range(length, 0, -1) if chance.keeps(i - 1, tests[i - 1]))
        accepted = next(passed, 0)
    row = target[accepted]
    if row.status != OK:
        return accepted, -1, tests
    if accepted < length:
        p = row.law()
        weights = excess(scales[accepted] * p, draft[accepted].law(tokens[accepted], p.size))
        # All zero where p = q up to rounding, whose rejection has probability 0: p is as good.
        if weights.any():
            return accepted, chance.choose(weights), tests
    return accepted, chance.draw(row, 0), tests


def _length(target: Sequence[TargetRow], draft: Sequence[DraftRow], tokens: Sequence[int]) -> int:
    """Where a chain ends: at no draft, a dead target row, or a draft row that has no law.

    Each is known from the tokens before it alone, so that ending there leaves the law as it is.
    """
    for i, token in enumerate(tokens):
        if token < 0 or target[i].status != OK or not draft[i].usable:
            return i
    return len(tokens)


def _block_tests(
    target: Sequence[TargetRow],
    draft: Sequence[DraftRow],
    tokens: Sequence[int],
    scales: Sequence[float],  # L + 1
) -> list[float]:
    """h_1 ... h_L of block verification."""
    tests = []
    for i in range(1, len(scales) - 1):
        mass = 0.0
        if 0.0 < scales[i] < 1.0:  # else h is 0 or 1 whatever the mass
            p = target[i].law()
            mass = float(excess(scales[i] * p, draft[i].law(tokens[i], p.size)).sum())
        tests.append(block_acceptance(scales[i], mass))
    return [*tests, *scales[1:][-1:]]
