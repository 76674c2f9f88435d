"""A lane without a device, for tests and measurements: it copies late."""

import math
import os
import random
import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple
from weakref import finalize

import torch
from torch import Tensor

from .._core import as_number, shown
from .lanes import Done, Ticket, Way
from .threads import start_thread, wait_between_signals

Pairs = Sequence[tuple[Tensor, Tensor]]


class _Event:
    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: BaseException | None = None
        self.query = self._done.is_set

    def set(self, error: BaseException | None = None) -> None:
        self._error = error
        self._done.set()

    def synchronize(self) -> None:
        if not self._done.is_set():
            wait_between_signals(self._done.wait)
        if self._error is not None:
            raise RuntimeError("a copy failed") from self._error


class _Copy(NamedTuple):
    pairs: Pairs
    after: tuple[Ticket, ...]
    done: _Event


class CpuLane:
    """Copies between tensors on the CPU as if one of them were on a device.

    Each way has a thread, which reads a source when it comes to it, after a random delay. Until
    then the target is NaN (integers: all bits set), so that what uses it too early, or changes a
    source too early, gives wrong numbers.

    Args:
        seed: of the delays.
        delay: mean delay of a copy in seconds, besides the time that ``bandwidth`` takes.
        bandwidth: of each way, in bytes per second; None for as much as there is.

    Attributes:
        num_bytes, num_copies: what has been copied so far, by way: to the host and to the device.

    Raises:
        TypeError: ``delay`` or ``bandwidth`` is not a real number.
        ValueError: ``delay`` is negative or not finite, or ``bandwidth`` is not above 0.
    """

    pinned = False

    def __init__(self, seed: int = 0, delay: float = 1e-4, bandwidth: float | None = None) -> None:
        self.num_bytes = dict.fromkeys(Way, 0)
        self.num_copies = dict.fromkeys(Way, 0)
        delay = as_number("delay", delay)
        if not 0 <= delay < math.inf:
            raise ValueError(
                f"delay must be a finite number of seconds, 0 or more; got {shown(delay)}"
            )
        if bandwidth is not None:
            bandwidth = as_number("bandwidth", bandwidth)
            if not bandwidth > 0:
                raise ValueError(
                    f"bandwidth must be above 0, in bytes per second; got {shown(bandwidth)}"
                )
        self._pace = seed, delay, bandwidth
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._queues: dict[Way, SimpleQueue[_Copy | None]] = {way: SimpleQueue() for way in Way}
        seed, delay, bandwidth = self._pace
        for way, queue in self._queues.items():
            run = partial(_run, queue, random.Random(f"{seed} {way}"), delay, bandwidth)
            stop = partial(queue.put, None)
            start_thread(f"cpu lane {way.name}", run, stop)
            finalize(self, stop).atexit = False

    def ticket(self) -> Ticket:
        """Stands for all that this thread has given to the device."""
        return Done()

    def copy(self, pairs: Pairs, way: Way, after: Iterable[Ticket]) -> Ticket:
        """Copy each source to its target, after these tickets; returns at once.

        Args:
            pairs: (target, source); copies of one way keep their order.
        """
        if self._process != os.getpid():  # a fork has no copy of the threads
            self._start()
        done = _Event()
        for target, source in pairs:
            with torch.inference_mode():
                target.view(torch.uint8).fill_(0xFF)
            self.num_bytes[way] += source.nbytes
        self.num_copies[way] += len(pairs)
        self._queues[way].put(_Copy(pairs, tuple(after), done))
        return done

    def order(self, ticket: Ticket) -> None:
        """What this thread gives to the device from now on runs after the ticket."""
        ticket.synchronize()

    def __deepcopy__(self, memo: dict[int, object]) -> "CpuLane":
        return CpuLane(*self._pace)


def _copy(pairs: Pairs) -> None:
    """A function of its own, so that the thread keeps no tensors while it waits."""
    with torch.inference_mode():  # which may write to all tensors
        for target, source in pairs:
            target.copy_(source)


def _run(
    queue: "SimpleQueue[_Copy | None]",
    numbers: random.Random,
    delay: float,
    bandwidth: float | None,
) -> None:
    while (copy := queue.get()) is not None:
        size = sum(source.nbytes for _, source in copy.pairs)
        try:
            for ticket in copy.after:
                ticket.synchronize()
            time.sleep(numbers.uniform(0, 2 * delay) + (size / bandwidth if bandwidth else 0))
            _copy(copy.pairs)
            copy.done.set()
        except BaseException as error:
            copy.done.set(error)
        del copy
