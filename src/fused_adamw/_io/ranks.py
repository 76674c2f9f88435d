"""The processes that save or load a checkpoint together."""

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .._distributed.agreement import raise_on_all_ranks
from .._optim.arrays import Array


class Ranks:
    """The ranks of a communicator of mpi4py; with None this process alone, which is rank 0."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.rank = comm, 0 if comm is None else int(comm.rank)

    def agreement(self, call: dict[str, Any] | None = None) -> AbstractContextManager[None]:
        """A block that raises on every rank what it raises on one; ``call``: what has to be the
        same on all, which the block may fill in."""
        return raise_on_all_ranks(self.comm, call)

    def broadcast(self, value: str) -> str:
        """The value of rank 0."""
        return value if self.comm is None else str(self.comm.bcast(value))

    def send(self, data: Array) -> None:
        """Send flat, contiguous data to rank 0."""
        self.comm.Send(data.view(np.uint8), 0)

    def receive(self, data: Array, rank: int) -> None:
        """Receive, on rank 0, what a rank sends."""
        self.comm.Recv(data.view(np.uint8), rank)
