"""Keys of random numbers: who draws, instead of the numbers drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.backend import is_tensor, to_numpy
from midstream.kernels.philox import half_open_uniforms, philox_keyed_words

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Keys:
    """Of P draws or sequences of draws, the Philox counters that their uniforms come from.

    seed: the 64-bit Philox keys, as int64 or uint64 [P]: of a negative number the bits count.
    sequence, position: 32-bit counter words, integers [P].
    purpose: what the numbers are for, a 32-bit counter word. first: number of the first draw.
    Each array numpy, or torch (int64) on the device of the logits, whose values are not read by the
    host: of sequence and position the low 32 bits count there.

    Draw j of key p has the words i and i + 1 of its stream, i = 2 (first + j): the first chooses a
    block of tokens, the second a token inside it. Word i is word i & 3 of the Philox4x32-10 block
    with key = seed (low, high) and counter = (position, sequence, i >> 2, purpose), so that draws
    are the same however many are asked for at once.
    """

    seed: Any
    sequence: Any
    position: Any
    purpose: int
    first: int = 0

    def __post_init__(self) -> None:
        for name in ("seed", "sequence", "position"):
            array = getattr(self, name)
            if is_tensor(array):
                fits, accepted = str(array.dtype) == "torch.int64", "a torch.int64 tensor"
            else:
                fits, accepted = np.asarray(array).dtype.kind in "iu", "an array of integers"
            shape = tuple(np.shape(array))
            if not fits or len(shape) != 1 or shape != tuple(np.shape(self.seed)):
                kind = getattr(array, "dtype", type(array).__name__)
                accepted += " [P], equally long for seed, sequence and position"
                raise ValueError(f"{name}: got {kind} {list(shape)}; accepted: {accepted}")
            if name != "seed" and not is_tensor(array):
                _check_word(name, np.asarray(array))
        _check_word("purpose", np.asarray(self.purpose))
        if self.first < 0:
            raise ValueError(f"first: got {self.first}; accepted: an integer, at least 0")

    def __len__(self) -> int:
        return len(self.seed)

    def uniforms(self, count: int) -> Float:
        """The uniforms of the draws `first` to `first + count`: float64 [P, count, 2] in [0, 1)."""
        seed, position, sequence = (
            to_numpy(each).astype(np.uint64) for each in (self.seed, self.position, self.sequence)
        )
        low = np.uint64(0xFFFFFFFF)
        words = philox_keyed_words(
            seed, position & low, sequence & low, self.purpose, 2 * count, 2 * self.first
        )
        return half_open_uniforms(words).reshape(len(self), count, 2)


def _check_word(name: str, values: npt.NDArray[Any]) -> None:
    if values.size and not (0 <= int(values.min()) and int(values.max()) < 1 << 32):
        raise ValueError(f"{name}: got {values.tolist()}; accepted: integers from 0 to 2^32 - 1")
