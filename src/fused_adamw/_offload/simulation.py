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
    """A block in which optimizers are made that treat the CPU as a device, to test a training loop
    where there is none: parameters are copied late, and wrong numbers show where something does not
    wait.

    Args:
        lane: copies.
        slots, slot_bytes: of the pinned memory, powers of two; by default those for a device.
    """
    lane = lane or CpuLane()
    _simulations.append((lane, None if slots is None else (slots, slot_bytes)))
    try:
        yield lane
    finally:
        _simulations.pop()
