"""One batch, divided over ranks: for a training loop that knows nothing of them."""

from typing import Any

import numpy as np

from .model import Cache, Parameters, Sequences, TinyTransformer


class SplitBatches:
    """A model of which each rank sees its part of a batch, and all the loss of the whole.

    The rows of a batch are divided in equal parts, in order. What is a single sequence, every rank
    takes whole. The gradients are those of this rank's part: their mean over the ranks is that of
    the batch.

    Args:
        model: of this rank; the same on all.
        comm: a communicator of mpi4py.

    A batch is an array. Raises ValueError in ``forward`` where its rows are no multiple of the
    ranks.
    """

    def __init__(self, model: TinyTransformer, comm: Any) -> None:
        self.model, self.comm = model, comm

    def forward(self, tokens: Sequences, targets: Sequences) -> tuple[float, Cache]:
        batch = np.asarray(tokens)
        if batch.ndim == 1:
            return self.model.forward(tokens, targets)
        rows = rows_of(len(batch), self.comm.rank, self.comm.size)
        loss, cache = self.model.forward(batch[rows], np.asarray(targets)[rows])
        return float(np.mean(self.comm.allgather(loss))), cache

    def backward(self, cache: Cache) -> Parameters:
        return self.model.backward(cache)

    def any(self, sign: bool) -> bool:
        """Whether any rank has this sign."""
        return any(self.comm.allgather(sign))


def rows_of(batch_size: int, rank: int, ranks: int) -> slice:
    """The rows of a rank."""
    if batch_size % ranks:
        raise ValueError(f"--batch-size is {batch_size}; expected a multiple of the {ranks} ranks")
    share = batch_size // ranks
    return slice(rank * share, (rank + 1) * share)
