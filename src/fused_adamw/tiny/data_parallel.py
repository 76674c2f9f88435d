"""Data parallelism: each rank computes the gradients of its rows of a batch."""

from typing import Protocol, TypeVar

import numpy as np

from .model import Cache, Parameters, TinyTransformer
from .token_input import Sequences

T = TypeVar("T")


class Communicator(Protocol):
    """What is used of a communicator of mpi4py."""

    rank: int
    size: int

    def allgather(self, value: T) -> list[T]: ...


class DataParallelModel:
    """A model that takes this rank's rows of a batch, and returns the loss of the whole batch.

    The rows are divided into equal parts, in order. Every rank takes a single sequence whole. The
    gradients are those of this rank's rows: their mean over the ranks is that of the batch. Both
    hold where all ranks count as many targets, as they do without padding.

    Args:
        model: the same on every rank.
        comm: communicator of the ranks, of mpi4py.
    """

    has_whole_gradients = False

    def __init__(self, model: TinyTransformer, comm: Communicator) -> None:
        self.model, self.comm = model, comm

    def forward(self, tokens: Sequences, targets: Sequences) -> tuple[float, Cache]:
        """Return the loss of the whole batch, and what `backward` needs.

        Raises:
            ValueError: the number of rows is not a multiple of the number of ranks.
        """
        batch = np.asarray(tokens)
        if batch.ndim == 1:
            return self.model.forward(tokens, targets)
        rows = rows_of_rank(len(batch), self.comm.rank, self.comm.size)
        loss, cache = self.model.forward(batch[rows], np.asarray(targets)[rows])
        return float(np.mean(self.comm.allgather(loss))), cache

    def backward(self, cache: Cache) -> Parameters:
        """Return the gradients of this rank's rows."""
        return self.model.backward(cache)

    def maximum(self, value: int) -> int:
        """Return the largest of the values on all ranks."""
        return max(self.comm.allgather(value))


def rows_of_rank(batch_size: int, rank: int, ranks: int) -> slice:
    """Return the rows of a batch that a rank takes."""
    if batch_size % ranks:
        raise ValueError(
            f"batch_size must be a multiple of the number of ranks ({ranks}); got {batch_size}"
        )
    share = batch_size // ranks
    return slice(rank * share, (rank + 1) * share)
