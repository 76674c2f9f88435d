"""Optimizers for which the CPU is a device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .._core import as_integer, shown
from .cpu_lane import CpuLane
from .engine import Engine
from .lanes import Lanes
from .ring import SMALLEST_SLOT

_simulations: list[tuple[CpuLane, tuple[int, int] | None]] = []


def new_engine() -> Engine:
    """That of an optimizer that is made now."""
    lane, ring = _simulations[-1] if _simulations else (None, None)
    return Engine(Lanes(lane), ring)


@contextmanager
def simulated(
    lane: CpuLane | None = None, *, slots: int | None = None, slot_bytes: int = 1 << 20
) -> Iterator[CpuLane]:
    """A block in which new optimizers treat the CPU as a device.

    This tests a training loop on a machine without one: parameters are copied late, and NaN shows
    where code does not wait.

    Args:
        lane: performs the copies. None: a new ``CpuLane()``.
        slots: number of slots of the pinned memory, a power of two. None: as for a device, with
            slots of the size for a device.
        slot_bytes: size of a slot, a power of two and at least 2^17, where ``slots`` is given.

    Yields:
        The lane.

    Raises:
        TypeError: ``lane`` is not a ``CpuLane``, or a size is not an integer.
        ValueError: a size is not such a power of two.
    """
    if slots is not None:
        slots = _power_of_two("slots", slots, 1)
        slot_bytes = _power_of_two("slot_bytes", slot_bytes, SMALLEST_SLOT)
    lane = CpuLane() if lane is None else lane
    if not isinstance(lane, CpuLane):
        raise TypeError(f"lane must be a CpuLane or None; got {shown(lane)}")
    _simulations.append((lane, None if slots is None else (slots, slot_bytes)))
    try:
        yield lane
    finally:
        _simulations.pop()


def _power_of_two(name: str, value: Any, minimum: int) -> int:
    requirement = f"a power of two, {minimum} or more"
    number: int = as_integer(name, value, requirement)
    if number < minimum or number.bit_count() != 1:
        raise ValueError(f"{name} must be {requirement}; got {shown(value)}")
    return number
