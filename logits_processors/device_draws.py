"""Draws made where the logits are: masks go up in one copy, what was drawn comes down in one.

A step asks the host for nothing but the masks. What it drew stays on the device until the next step
needs it to move the matchers, or until somebody reads the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from midstream.kernels.bitmask import Mask, mask_words
from midstream.kernels.keys import Keys
from midstream.kernels.masked_sampling import OK, masked_sample
from midstream.middleware.law import Law
from midstream.middleware.random import PURPOSES

Ids = npt.NDArray[np.int64]


class Upload:
    """What one step brings to the device, written on the host and copied by `to`.

    masks: uint32 [B, W], to be filled. tokens: int64 [B], of the rows that are not drawn there.
    """

    __slots__ = ("_buffer", "masks", "tokens")

    def __init__(self, rows: int, size: int, *, pinned: bool) -> None:
        words = mask_words(size)
        # Rows of a multiple of 16 words keep the loads of the kernel wide.
        width = -(-(words + 2) // 16) * 16
        self._buffer = torch.empty((rows, width // 2), dtype=torch.int64, pin_memory=pinned)
        numbers = self._buffer.numpy()
        self.masks: Mask = numbers.view(np.uint32)[:, :words]
        self.tokens: Ids = numbers[:, -1]

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Masks int32 [B, W] and tokens int64 [B] on the device, by one copy that nobody awaits."""
        numbers = self._buffer.to(device, non_blocking=True)
        return numbers.view(torch.int32)[:, : self.masks.shape[1]], numbers[:, -1]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one step drew. On the device until `DeviceDraws.collect`."""

    rows: Sequence[int]  # that were drawn for; what stands at others means nothing
    masks: Mask  # uint32 [B, W]
    tokens: Any  # int64 [B], as they were forced
    status: Any  # of MaskedSample, integers [B]
    log_weights: Any  # float64 [B]


class DeviceDraws:
    """Draws with the sampler `mask`, for rows whose logits lie on one device.

    Tokens and weights are those of the sampler on the host with Stream(seed, sequence, position):
    the same uniforms and the same law. End-of-sequence ids are drawn as the first of them.
    """

    def __init__(
        self,
        sequences: Sequence[int],
        *,
        law: Law,
        seed: int,
        eos_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        self._law = law if law.truncates else Law(law.temperature)
        self._device = device
        self._pinned = device.type == "cuda"
        self._drawn: Drawn | None = None
        rows = len(sequences)
        seeds = [seed - (seed >> 63 << 64)] * rows  # the same 64 bits, signed
        numbers = [*seeds, *sequences, *eos_ids]
        there = torch.tensor(numbers, dtype=torch.int64, pin_memory=self._pinned)
        there = there.to(device, non_blocking=True)
        self._seeds, self._sequences = there[:rows], there[rows : 2 * rows]
        self._eos = there[2 * rows :]

    def upload(self, size: int) -> Upload:
        """Where the host writes for the next step, for rows of `size` logits."""
        return Upload(len(self._seeds), size, pinned=self._pinned)

    def draw(self, scores: Tensor, upload: Upload, rows: Sequence[int], position: int) -> Tensor:
        """The token of each row, int64 [B]: drawn from scores [B, V] for `rows`, else as uploaded.

        A row of `rows` that cannot draw gets its uploaded token, too.
        """
        masks, tokens = upload.to(self._device)
        positions = torch.full_like(self._seeds, position)
        law = self._law
        sample = masked_sample(
            scores,
            masks,
            Keys(self._seeds, self._sequences, positions, PURPOSES["token"]),
            temperature=law.temperature,
            top_k=law.top_k,
            top_p=law.top_p,
            min_p=law.min_p,
            truncation=law.truncation,
            backend="triton",
        )
        ended = (sample.token[:, None] == self._eos).any(dim=1)
        drawn = torch.where(ended, self._eos[0], sample.token)
        tokens = torch.where(sample.status == OK, drawn, tokens)
        self._drawn = Drawn(rows, upload.masks, tokens, sample.status, sample.log_weight)
        return tokens

    def collect(self, told: Tensor | None = None) -> tuple[Drawn | None, Ids]:
        """Bring to the host what the last `draw` drew, once, and what is to be told besides.

        told: int64 [n, B] on the device. One copy, which is the only wait for the device: of both,
            or of what there is.
        """
        drawn, self._drawn = self._drawn, None
        lines = [] if told is None else [*told]
        if drawn is not None:
            # As bits, so that one copy holds weights and numbers.
            weights = drawn.log_weights.view(torch.int64)
            lines += [drawn.tokens, drawn.status.long(), weights]
        if not lines:
            return None, np.empty((0, 0), np.int64)
        found: Ids = torch.stack(lines).cpu().numpy()
        if drawn is None:
            return None, found
        tokens, status, bits = found[-3:]
        return Drawn(drawn.rows, drawn.masks, tokens, status, bits.view(np.float64)), found[:-3]
