"""The processes that save or load a checkpoint together."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._optim.arrays import Array
from .agreement import raise_on_all_ranks


class _SenderFailedError(Exception):
    """A rank has sent less than it was to send, which raises an error of its own."""


class Ranks:
    """The ranks of a communicator of mpi4py; with None this process alone, which is rank 0."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.rank = comm, 0 if comm is None else int(comm.rank)
        self._sending: set[int] = set()  # on rank 0, in a block of `transfer`

    def agreement(self, call: dict[str, Any] | None = None) -> AbstractContextManager[None]:
        """A block that raises on every rank what it raises on one; ``call``: what has to be the
        same on all, which the block may fill in."""
        return raise_on_all_ranks(self.comm, call)

    def broadcast(self, value: str) -> str:
        """The value of rank 0."""
        return value if self.comm is None else str(self.comm.bcast(value))

    @contextmanager
    def transfer(self, buffer: NDArray[np.uint8]) -> Iterator[None]:
        """A block in which other ranks send to rank 0. It ends on all of them, whatever is raised
        on whichever: a rank that has sent all, or that has failed, sends an empty message, and
        rank 0 receives up to there.

        Args:
            buffer: on rank 0 at least as large as the largest message.
        """
        if self.comm is None:
            yield
            return
        self._sending = set(range(1, self.comm.size)) if self.rank == 0 else set()
        try:
            yield
        except _SenderFailedError:
            pass
        finally:
            if self.rank != 0:
                self.send(buffer[:0])
            for rank in sorted(self._sending):
                while self._receive_some(buffer, rank):
                    pass

    def send(self, data: Array) -> None:
        """Send flat, contiguous data to rank 0; without an element it means failure."""
        self.comm.Send(data.view(np.uint8), 0)

    def receive(self, data: Array, rank: int) -> None:
        """Receive, on rank 0, what a rank sends: at least one element."""
        if not self._receive_some(data, rank):
            raise _SenderFailedError

    def _receive_some(self, buffer: Array, rank: int) -> bool:
        """Receive a message; False for the empty one."""
        from . import mpi  # here, as a single process does not need mpi4py

        received = mpi.receive_bytes(self.comm, buffer, rank)
        if not received:
            self._sending.discard(rank)
        return received > 0
