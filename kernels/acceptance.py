"""The arithmetic of exact verification: when a drafted token is kept, and what is drawn instead.

p is the target law of the next token, q the law that the drafted token was drawn from; [x]+ is
max(x, 0). Pure functions of float64 values, for chains (token by token: Leviathan, Kalman, Matias,
arXiv 2211.17192; block: Sun et al., arXiv 2403.10444) and trees (recursive rejection: Jeon et al.,
arXiv 2402.14160).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


def acceptance(log_p: float, log_q: float) -> float:
    """min(1, p / q) of a drafted token. 0 where p is 0, whatever q is."""
    return 0.0 if log_p == -math.inf else math.exp(min(log_p - log_q, 0.0))


def block_scales(log_p: Sequence[float], log_q: Sequence[float]) -> list[float]:
    """P_0 = 1 and P_i = min(1, P_{i-1} p_i(d_i) / q_i(d_i)) for L drafted tokens: L + 1 values.

    Pr(at least i are kept | d_1..d_i) = P_i.
    """
    log_scales = [0.0]
    for target, draft in zip(log_p, log_q, strict=True):
        dead = -math.inf in (target, log_scales[-1])
        log_scales.append(-math.inf if dead else min(log_scales[-1] + (target - draft), 0.0))
    return [math.exp(value) for value in log_scales]


def block_acceptance(scale: float, excess_mass: float) -> float:
    """h = Z / (Z + 1 - P), with Z the mass of [P p - q]+ at the next position; 1 for 0 / 0."""
    rest = excess_mass + (1.0 - scale)
    return excess_mass / rest if rest > 0.0 else 1.0


def sibling_acceptance(log_p: float, log_q: float, taken: float, mass: float, left: float) -> float:
    """min(1, R / D) of the next child of a node, R = [p - C q]+ / A and D = q / L.

    taken: C, mass: A, the mass of [p - C q]+, left: L, the mass of q without earlier siblings.
    """
    if log_p == -math.inf:
        return 0.0
    # Past e^700 nothing but 1 can come out.
    ratio = math.exp(min(log_p - log_q, 700.0))
    return min(max(ratio - taken, 0.0) * left / mass, 1.0)


def excess(
    p: Float,  # [V]
    q: Float,  # [V]
) -> Float:
    """[p - q]+ of two multiples of laws, not normalised: float64 [V]."""
    weights: Float = np.maximum(p - q, 0.0)
    return weights


def mass_without(
    law: Float,  # [V]
    tokens: Sequence[int],
) -> float:
    """The mass of a law without some tokens, summed, never got by subtraction."""
    rest = law.copy()
    rest[list(tokens)] = 0.0
    return float(rest.sum())
