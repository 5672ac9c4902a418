"""With everything in tensors these wrappers ask the device for no value: graphs can hold them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.triton.apply_bitmask import apply_bitmask
from midstream.kernels.triton.fuse import fuse
from midstream.kernels.triton.next_byte import next_byte

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinities


class _Forbid(TorchDispatchMode):
    """Fails on what would wait for the device."""

    waits = ("_local_scalar_dense", "item", "nonzero", "equal", "unique", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.waits, name
        return func(*args, **(kwargs or {}))


def test_apply_bitmask_does_not_wait() -> None:
    logits, mask = torch.zeros(2, 33), torch.full((2, 1), -1, dtype=torch.int32)
    with _Forbid():
        apply_bitmask(logits, mask, torch.tensor([1]))
    assert logits.isneginf().nonzero().tolist() == [[1, 32]]


def test_next_byte_does_not_wait() -> None:
    vocabulary = ByteSortedVocabulary([b"a", b"ab", b""])
    mask = torch.full((2, 1), -1, dtype=torch.int32)
    given = torch.tensor([0, 1]), torch.tensor([1, 0]), mask, torch.tensor([0.5, 1.0])
    with _Forbid():
        _, _, _, _, status = next_byte(torch.zeros(2, 3), vocabulary, *given)
    assert status.tolist() == [0, 0]


@pytest.mark.parametrize("product", [False, True])
def test_fuse_does_not_wait(product: bool) -> None:
    rows = torch.zeros(2, 40), torch.zeros(2, 9)
    weights, temperature = torch.full((2, 2), 0.5), torch.ones(2, 2)
    token_weights = [None, torch.ones(2, 40)]
    index_maps = [None, torch.arange(40, dtype=torch.int32)]
    with _Forbid():
        _, _, mapped, status = fuse(rows, weights, token_weights, product, index_maps, temperature)
    assert status.tolist() == [0, 0]
    assert mapped.exp().flatten().tolist() == pytest.approx([1.0] * 4)


def test_control_a_wait_is_seen() -> None:
    with _Forbid(), pytest.raises(AssertionError):
        torch.ones(2).max().item()
