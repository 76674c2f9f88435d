"""Pinned host memory of a fixed size, through which gradients and parameters pass."""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from .._core import CHUNK
from .lanes import Done, Ticket

SLOTS = 8
SMALLEST_SLOT = CHUNK * torch.float64.itemsize  # bytes: a chunk of any dtype fits
SLOT_BYTES = 8 << 20  # for gradients, and as much for parameters: 128 MiB in all


class Slot(NamedTuple):
    """Bytes for the gradients and for the parameters of one bundle."""

    grads: Tensor
    params: Tensor


class Ring:
    """Two rings of slots, of gradients and of parameters, that are used in turn.

    Args:
        slots, slot_bytes: powers of two, as allocators of pinned memory round sizes up to them.
        pinned: whether the memory has to be.
    """

    def __init__(
        self, slots: int = SLOTS, slot_bytes: int = SLOT_BYTES, pinned: bool = True
    ) -> None:
        size, options = slots * slot_bytes, {"dtype": torch.uint8, "pin_memory": pinned}
        rings = [torch.empty(size, device="cpu", **options).split(slot_bytes) for _ in Slot._fields]
        self.slot_bytes = slot_bytes
        self.nbytes = len(rings) * slots * slot_bytes
        self._free: deque[tuple[Slot, Ticket]] = deque(
            (Slot(*memory), Done()) for memory in zip(*rings, strict=True)
        )

    def take(self, wait: bool) -> Slot | None:
        """The slot that has been free for longest; ``wait``: until its last copy has left it."""
        if not self._free:
            return None
        slot, left = self._free[0]
        if wait:
            left.synchronize()
        elif not left.query():
            return None
        self._free.popleft()
        return slot

    def give_back(self, slot: Slot, left: Ticket) -> None:
        """The slot can be used again after a copy out of it."""
        self._free.append((slot, left))
