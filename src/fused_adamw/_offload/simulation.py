"""Optimizers for which the CPU is a device."""

from collections.abc import Iterator
from contextlib import contextmanager

from .cpu_lane import CpuLane
from .engine import Engine
from .lanes import Lanes

_simulations: list[tuple[CpuLane, tuple[int, int] | None]] = []


def new_engine() -> Engine:
    """That of an optimizer that is made now."""
    lane, ring = _simulations[-1] if _simulations else (None, None)
    return Engine(Lanes(lane), ring)


@contextmanager
def simulated(
    lane: CpuLane | None = None, *, slots: int | None = None, slot_bytes: int = 1 << 20
) -> Iterator[CpuLane]:
    """A block in which optimizers are made that treat the CPU as a device.

    To test a training loop where there is none: parameters are copied late, and NaN shows where
    something does not wait.

    Args:
        lane: performs the copies. None: a new ``CpuLane()``.
        slots: number of slots of the pinned memory, a power of two. None: as for a device, with
            slots of the size for a device.
        slot_bytes: size of a slot, a power of two, where ``slots`` is given.

    Yields:
        The lane.
    """
    lane = lane or CpuLane()
    _simulations.append((lane, None if slots is None else (slots, slot_bytes)))
    try:
        yield lane
    finally:
        _simulations.pop()
