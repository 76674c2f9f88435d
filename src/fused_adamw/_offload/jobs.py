"""The work of a step: jobs of whole parameters, cut into pieces, packed into bundles."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._core import CHUNK
from .host_state import HostState
from .lanes import Done, Lane, Ticket
from .recipe import Recipe
from .ring import Slot

ALIGNMENT = 64  # of pieces in a slot, in bytes


class Job:
    """Work on the gradient of one parameter.

    Args:
        lane: to the device that it is on.
        ready: a ticket after which the gradient is final and the parameter is no longer read.
        grad, params: flat, on the device.
    """

    def __init__(self, lane: Lane, ready: Ticket, grad: Tensor, params: Tensor) -> None:
        self.lane, self.ready = lane, ready
        self.grad: Tensor | None = grad
        self.params = params
        self.size, self.itemsize = grad.numel(), grad.element_size()
        self.left = self.size  # elements
        self.written: Ticket = Done()  # the last copy to the device

    @property
    def key(self) -> Any:
        """Jobs with equal keys can be in one bundle."""
        raise NotImplementedError

    def finish(self, piece: "Piece", written: Ticket) -> None:
        """A piece has been worked on."""
        self.left -= piece.end - piece.begin
        self.written = written
        if not self.left:
            self.grad = None  # its memory can be used again


class SumJob(Job):
    """Sum the squares of a gradient, chunk by chunk."""

    def __init__(
        self, lane: Lane, ready: Ticket, grad: Tensor, params: Tensor, num_threads: int
    ) -> None:
        super().__init__(lane, ready, grad, params)
        self.sums: NDArray[np.float64] = np.zeros(-(-self.size // CHUNK))
        self.num_threads = num_threads

    @property
    def key(self) -> Any:
        return SumJob, id(self.lane), self.num_threads


class UpdateJob(Job):
    """Update a parameter and its state.

    Args:
        clip: a factor of the gradient, which may be NaN.
    """

    def __init__(
        self,
        lane: Lane,
        ready: Ticket,
        grad: Tensor,
        params: Tensor,
        host_state: HostState,
        recipe: Recipe,
        clip: float,
    ) -> None:
        super().__init__(lane, ready, grad, params)
        self.host_state, self.recipe, self.clip = host_state, recipe, clip
        self.t = int(host_state.step.item())  # steps before
        self.fresh, self.unverified = set(host_state.fresh), set(host_state.unverified)

    @property
    def key(self) -> Any:
        return UpdateJob, id(self.lane), self.recipe, self.clip


class Piece(NamedTuple):
    """A range of elements of a job; ``at``: its first byte in the slot."""

    job: Job
    begin: int
    end: int
    at: int = 0

    def of(self, memory: Tensor) -> Tensor:
        """The elements in a slot."""
        nbytes = (self.end - self.begin) * self.job.itemsize
        return memory[self.at : self.at + nbytes].view(self.job.params.dtype)

    def grad(self) -> Tensor:
        """On the device."""
        assert self.job.grad is not None
        return self.job.grad[self.begin : self.end]

    def params(self) -> Tensor:
        """On the device."""
        return self.job.params[self.begin : self.end]


class Bundle(NamedTuple):
    """Pieces of equal keys that share a slot."""

    pieces: list[Piece]
    slot: Slot
    arrived: Ticket  # of their copies to the host


def cut(job: Job, slot_bytes: int) -> Iterator[Piece]:
    """Pieces that fit into a slot, cut at multiples of the chunks of the norm, so that sums, blocks
    of the state and random numbers are those of the whole tensor."""
    most = slot_bytes // job.itemsize // CHUNK * CHUNK
    for begin in range(0, job.size, most):
        yield Piece(job, begin, min(begin + most, job.size))


def pack(pieces: deque[Piece], slot_bytes: int) -> list[Piece]:
    """Take from the queue what goes into one slot."""
    packed: list[Piece] = []
    key, at = pieces[0].job.key, 0
    while pieces:
        piece = pieces[0]
        nbytes = (piece.end - piece.begin) * piece.job.itemsize
        if at + nbytes > slot_bytes or (packed and piece.job.key != key):
            break
        packed.append(pieces.popleft()._replace(at=at))
        at += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return packed
