"""Pinned host memory of a fixed size, through which gradients and parameters pass."""

from collections import deque
from collections.abc import Sequence
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


class _Free(NamedTuple):
    """A slot that can be taken once a copy has left it. If nothing else needs the targets of that
    copy any longer, their memory must not be given to other tensors before."""

    slot: Slot
    left: Ticket
    targets: Sequence[Tensor]


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
        self._free: deque[_Free] = deque(
            _Free(Slot(*memory), Done(), []) for memory in zip(*rings, strict=True)
        )

    def take(self, wait: bool) -> Slot | None:
        """The slot that has been free for longest; ``wait``: until its last copy has left it."""
        if not self._free:
            return None
        first = self._free[0]
        if wait:
            first.left.synchronize()
        elif not first.left.query():
            return None
        self._free.popleft()
        return first.slot

    def give_back(self, slot: Slot, left: Ticket, targets: Sequence[Tensor]) -> None:
        """The slot can be used again after a copy out of it; the targets are kept until then."""
        self._free.append(_Free(slot, left, targets))

    def forget_targets(self) -> bool:
        """Keep no targets of copies that are complete; whether all are."""
        for _ in range(len(self._free)):
            slot, left, targets = self._free.popleft()
            self._free.append(_Free(slot, left, [] if left.query() else targets))
        return not any(free.targets for free in self._free)

    def drain(self) -> None:
        """Wait for all copies out of free slots. No slot is taken after it."""
        for free in self._free:
            free.left.synchronize()
        self._free.clear()
