"""What the pipelines of `benchmarks.kernels` are given, and the pipeline that plain torch makes of
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import MaskedSample, masked_sample


@dataclass(frozen=True, slots=True)
class Case:
    """One step of B rows: what any of the pipelines reads.

    Temperatures are those of each row, as a server has them.
    """

    logits: Tensor  # [B, V]
    mask: Tensor  # int32 [B, W]
    temperature: Tensor  # fp32 [B]
    seed: Tensor  # int64 [B], as are the next two
    sequence: Tensor
    position: Tensor

    @property
    def nbytes(self) -> int:
        """What must be read and written whatever the method: logits, mask, 24 bytes of results."""
        rows, size = self.logits.shape
        return rows * (size * self.logits.itemsize + 4 * ((size + 31) // 32) + 24)


def make_case(rows: int, size: int, dtype: torch.dtype, device: str, *, number: int = 0) -> Case:
    """Normal logits of standard deviation 3, half of the tokens allowed, T = 0.8."""
    source = torch.Generator(device).manual_seed(1000 * rows + number)
    words = (rows, (size + 31) // 32)
    ids = torch.arange(rows, dtype=torch.int64, device=device)
    return Case(
        logits=(3 * torch.randn((rows, size), generator=source, device=device)).to(dtype),
        mask=torch.randint(
            -(2**31), 2**31, words, generator=source, dtype=torch.int32, device=device
        ),
        temperature=torch.full((rows,), 0.8, device=device),
        seed=torch.full_like(ids, 1234 + number),
        sequence=ids,
        position=torch.full_like(ids, 7),
    )


def ours(case: Case) -> MaskedSample:
    """Where the logits are, by numpy or by the two kernels, random numbers included."""
    keys = Keys(case.seed, case.sequence, case.position, 0)
    return masked_sample(case.logits, case.mask, keys, temperature=case.temperature)


def torch_pipeline(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token, log p(token), log Z allowed and log Z all with torch's own operations.

    Mask, two logsumexp, softmax, an exponential race, argmax. Temperature and the conversion to
    fp32 are one pass, which bfloat16 needs anyway.
    """
    logits = case.logits * (1.0 / case.temperature)[:, None]
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = ((case.mask[:, :, None] >> bits) & 1).bool().flatten(1)[:, : logits.shape[1]]
    log_z_all = logits.logsumexp(dim=1)
    masked = logits.masked_fill(~allowed, float("-inf"))
    log_z_allowed = masked.logsumexp(dim=1)
    weights = masked.softmax(dim=1)
    token = (weights / torch.empty_like(weights).exponential_()).argmax(dim=1)
    log_p = logits.gather(1, token[:, None])[:, 0] - log_z_all
    return token, log_p, log_z_allowed, log_z_all
