"""Copies between a device and the host, and their order: all that is known of devices.

A ticket stands for work that a device has been given. ``torch.Event`` is one.
"""

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Protocol

import torch
from torch import Tensor


class Way(Enum):
    """The direction of a copy."""

    TO_HOST = auto()
    TO_DEVICE = auto()


class Ticket(Protocol):
    """Work that was given to a device."""

    def query(self) -> bool:
        """Whether it is done."""

    def synchronize(self) -> None:
        """Wait until it is done."""


class Lane(Protocol):
    """Three verbs; ``pinned``: whether host memory for ``copy`` has to be."""

    pinned: bool

    def ticket(self) -> Ticket:
        """Stands for all that this thread has given to the device."""

    def copy(
        self, pairs: Sequence[tuple[Tensor, Tensor]], way: Way, after: Iterable[Ticket]
    ) -> Ticket:
        """Copy each source to its target, after these tickets; returns at once.

        Args:
            pairs: (target, source); copies of one way keep their order.
        """

    def order(self, ticket: Ticket) -> None:
        """What this thread gives to the device from now on runs after the ticket."""


class Done:
    """The ticket of work that is done."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class StreamLane:
    """Two streams of an accelerator, one for each way, which are kept: allocators keep a pool of
    memory for every stream there has been."""

    pinned = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {way: torch.Stream(device) for way in Way}

    def ticket(self) -> Ticket:
        return self._record(torch.accelerator.current_stream(self._device))

    def copy(
        self, pairs: Sequence[tuple[Tensor, Tensor]], way: Way, after: Iterable[Ticket]
    ) -> Ticket:
        stream = self._streams[way]
        with stream:
            for ticket in after:
                if isinstance(ticket, torch.Event):
                    stream.wait_event(ticket)
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            return self._record(stream)

    def order(self, ticket: Ticket) -> None:
        if isinstance(ticket, torch.Event):
            torch.accelerator.current_stream(self._device).wait_event(ticket)

    def _record(self, stream: torch.Stream) -> Ticket:
        # An event that blocks leaves the core to the kernels; others wait in a loop.
        event: Ticket = stream.record_event(torch.Event(self._device, blocking=True))
        return event


class HostLane:
    """Copies at once: for parameters on the CPU that are stepped together with those of devices."""

    pinned = False

    def ticket(self) -> Ticket:
        return Done()

    def copy(
        self, pairs: Sequence[tuple[Tensor, Tensor]], way: Way, after: Iterable[Ticket]
    ) -> Ticket:
        for target, source in pairs:
            target.copy_(source)
        return Done()

    def order(self, ticket: Ticket) -> None:
        pass


class Lanes:
    """The lanes of an optimizer, one for each device, made when they are first needed.

    Args:
        simulated: takes the place of the lane of an accelerator for tensors on the CPU.
    """

    def __init__(self, simulated: Lane | None = None) -> None:
        self.simulated = simulated
        self._host = HostLane()
        self._lanes: dict[torch.device, Lane] = {}

    def of(self, p: Tensor) -> Lane | None:
        """The lane to the device of a tensor; None for one without copies, as the CPU."""
        device = p.device
        if device.type == "cpu":
            return self.simulated
        lane = self._lanes.get(device)
        if lane is None:
            accelerator = torch.accelerator.current_accelerator(check_available=True)
            if accelerator is None or accelerator.type != device.type:
                return None
            lane = self._lanes[device] = StreamLane(device)
        return lane

    def or_host(self, p: Tensor) -> Lane:
        """The lane to the device of a tensor; for the CPU one that copies at once."""
        lane = self.of(p)
        return self._host if lane is None else lane
