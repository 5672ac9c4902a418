"""The byte-sorted vocabulary on a device. Made by `midstream.kernels.byte_sorted`."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.triton.launch import Tensor

GROUP = 8
"""Children of a node that one program goes through, one after another."""

SPLIT = 1 << 15
"""For each so many tokens that a vocabulary spells, each stretch has one more program. Part of what
a row's last bits are.
"""


@dataclass(frozen=True, slots=True)
class ByteTables:
    """Of V tokens and N nodes, int32 but `byte`, uint8. Behind the nodes stand two more, of the end
    of sequence ids and of all after them, whose `ends` is where their stretch ends.
    """

    order: Tensor  # [V]
    first_child: Tensor  # [N + 1]
    byte: Tensor  # [N]
    low: Tensor  # [N + 2]
    high: Tensor  # [N]
    ends: Tensor  # [N + 2]
    groups: int  # of children, for the node that has most of them
    splits: int

    @property
    def slots(self) -> int:
        """Stretches of a node that there is room for: its children, and a group for the others."""
        return (self.groups + 1) * GROUP


_known: WeakKeyDictionary[ByteSortedVocabulary, dict[torch.device, ByteTables]] = (
    WeakKeyDictionary()
)


def tables_of(vocabulary: ByteSortedVocabulary, device: torch.device) -> ByteTables:
    """Copied at the first use on a device."""
    tables = _known.setdefault(vocabulary, {})
    if device not in tables:
        spelled, eos = vocabulary.spelled, vocabulary.spelled + vocabulary.ending
        beyond = np.iinfo(np.int32).max
        tables[device] = ByteTables(
            order=_put(vocabulary.order, device),
            first_child=_put(vocabulary.first_child, device),
            byte=torch.from_numpy(vocabulary.byte).to(device),
            low=_put(np.append(vocabulary.low, [spelled, eos]), device),
            high=_put(vocabulary.high, device),
            ends=_put(np.append(vocabulary.ends, [eos, beyond]), device),
            groups=-(-int(np.diff(vocabulary.first_child).max()) // GROUP),
            splits=max(-(-spelled // SPLIT), 1),
        )
    return tables[device]


def _put(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array.astype(np.int32)).to(device)
