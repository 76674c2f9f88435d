"""The thread that moves bundles through the ring: to the host, through a step, and back."""

import os
import threading
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from .._core import DeferredSignals
from . import stepper
from .jobs import Bundle, Job, Piece, cut, pack
from .lanes import Done, Ticket, Way
from .ring import Ring
from .threads import start_thread, wait_between_signals

COPY_SECONDS = 0.01
"""After this time without work the thread looks again whether copies to the device are complete."""


class Pump:
    """Does jobs in the order in which they are put, in one thread. It waits for copies and steps
    bundles without the GIL; putting a job does not block.

    Args:
        ring: the slots that bundles pass through.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring, self.ring_nbytes = ring, ring.nbytes
        self._changed = threading.Condition()
        self._pieces: deque[Piece] = deque()
        self._unfinished = 0  # jobs
        self._failure: BaseException | None = None
        self._started = self._stopped = False
        self.process = os.getpid()

    def start(self) -> None:
        """Start the thread, before the first job is put.

        Raises:
            RuntimeError: it cannot be started, or has failed.
        """
        self._raise_failure()
        if not self._started:
            with DeferredSignals():
                start_thread("offload", self._run, self.stop)
                self._started = True

    def cut(self, job: Job) -> list[Piece]:
        """The pieces of a job that is to be put."""
        return list(cut(job, self._ring.slot_bytes))

    def put(self, jobs: Iterable[list[Piece]]) -> None:
        """Queue jobs, each as its pieces; returns at once."""
        with self._changed:
            for pieces in jobs:
                self._unfinished += bool(pieces)
                self._pieces += pieces
            self._changed.notify_all()

    def wait(self, job: Job) -> None:
        """Wait until a job is done, but for its last copy to the device, ``job.written``."""

        def is_done(seconds: float) -> bool:
            with self._changed:
                if job.left and self._failure is None:
                    self._changed.wait(seconds)
                if job.left:
                    self._raise_failure()
                return not job.left

        if job.left:
            wait_between_signals(is_done)

    def is_busy(self) -> bool:
        """Whether there are jobs that are not done."""
        return self._unfinished > 0

    def stop(self) -> None:
        """End the thread once all is done."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RuntimeError(
                "an update failed: some parameters and their state are not updated, and this "
                "optimizer cannot be used again"
            ) from self._failure

    def _run(self) -> None:
        arriving: deque[Bundle] = deque()
        try:
            with torch.inference_mode():  # which may write to all tensors
                while arriving or self._await_pieces():
                    self._start_copies(arriving)
                    self._finish(arriving.popleft())
                self._ring.drain()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._pieces.clear()
                self._changed.notify_all()

    def _await_pieces(self) -> bool:
        with self._changed:
            while not (self._pieces or self._stopped):
                self._changed.wait(None if self._ring.forget_targets() else COPY_SECONDS)
            return bool(self._pieces)

    def _start_copies(self, arriving: deque[Bundle]) -> None:
        """Copy as many bundles to the host as there are slots for; at least one."""
        while self._pieces:
            slot = self._ring.take(wait=not arriving)
            if slot is None:
                return
            with self._changed:
                pieces = pack(self._pieces, self._ring.slot_bytes)
            tickets = {id(piece.job.ready): piece.job.ready for piece in pieces}
            pairs = stepper.copies_to_host(pieces, slot)
            lane = pieces[0].job.lane
            arriving.append(Bundle(pieces, slot, lane.copy(pairs, Way.TO_HOST, tickets.values())))

    def _finish(self, bundle: Bundle) -> None:
        bundle.arrived.synchronize()
        written: Ticket = Done()
        targets: list[Tensor] = []
        if stepper.is_update(bundle):
            stepper.update(bundle)
            pairs = stepper.copies_to_device(bundle)
            written = bundle.pieces[0].job.lane.copy(pairs, Way.TO_DEVICE, [])
            targets = [target for target, _ in pairs]
        else:
            stepper.add_squares(bundle)
        self._ring.give_back(bundle.slot, written, targets)
        with self._changed:
            for piece in bundle.pieces:
                piece.job.finish(piece, written)
                self._unfinished -= not piece.job.left
            self._changed.notify_all()
