"""How training runs: in a single process, or on all ranks of an mpiexec job.

The code that trains need not know which of the two: it is given `Processes`, or `MPIProcesses`.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from .._distributed.agreement import raise_on_all_ranks
from ..optimizer import AdamW
from .data_parallel import DataParallelModel, rows_of_rank
from .model import Parameters, TinyTransformer
from .text_data import Batch
from .train_loop import History, Model, Optimizer, train

if TYPE_CHECKING:
    from ..sharded import ShardedAdamW

OnStep = Callable[[History], None]


def join_mpi() -> bool:
    """Make an exception on one rank end all; return whether this process is rank 0.

    Raises:
        ImportError: mpi4py or an MPI library is missing; the message says what to install.
    """
    from .._distributed import mpi

    world = mpi.world()
    mpi.abort_on_exception(world)
    return bool(world.rank == 0)


def rank_in_world() -> int:
    """The number of this process among those that mpiexec has started."""
    from .._distributed import mpi

    return int(mpi.world().rank)


def abort_all_ranks(status: int) -> NoReturn:
    """End the processes of all ranks, whatever they wait for."""
    from .._distributed import mpi

    mpi.abort(mpi.world(), status)


class Processes:
    """The processes that train together: this one alone."""

    is_main = True  # whether this process prints and writes files
    size = 1  # the number of processes

    def errors_on_all_ranks(
        self, shared: dict[str, Any] | None = None
    ) -> AbstractContextManager[None]:
        """Raise an error of one process in all of them, and ValueError where values that the block
        puts into `shared`, by name, differ between them."""
        return nullcontext()

    def check_batch_size(self, batch_size: int) -> None:
        """Raise ValueError unless a batch can be divided among the processes."""

    def make_adamw(
        self,
        parameters: Parameters,
        lr: float,
        schedule: Callable[[int], float] | None = None,
        **options: Any,
    ) -> "AdamW | ShardedAdamW":
        """Return an AdamW of the parameters; `options` are those of its class."""
        optimizer = self._optimizer_class()(parameters, lr, **options)
        if schedule is not None:
            # Set afterwards: of a schedule only the first rate would be checked; lr is the highest.
            optimizer.param_groups[0]["lr"] = schedule
        return optimizer

    def train(
        self,
        model: TinyTransformer,
        optimizer: Optimizer,
        batches: Iterable[Batch],
        steps: int,
        on_step: OnStep,
        history: History,
        on_repeated_signal: Callable[[], None],
    ) -> None:
        """Train as `train_loop.train` does."""
        over_all, over_ranks = self._divided(model)
        train(over_all, optimizer, batches, steps, on_step, history, over_ranks, on_repeated_signal)

    def _optimizer_class(self) -> "type[AdamW] | type[ShardedAdamW]":
        return AdamW

    def _divided(self, model: TinyTransformer) -> tuple[Model, Callable[[int], int]]:
        """A model whose batches all processes share, and the maximum of a number of each."""
        return model, int


class MPIProcesses(Processes):
    """All ranks of an mpiexec, which divide each batch and the optimizer state."""

    def __init__(self) -> None:
        from .._distributed import mpi

        self.comm = mpi.private_duplicate(mpi.world())
        self.is_main, self.size = bool(self.comm.rank == 0), int(self.comm.size)

    def errors_on_all_ranks(
        self, shared: dict[str, Any] | None = None
    ) -> AbstractContextManager[None]:
        return raise_on_all_ranks(self.comm, shared)

    def check_batch_size(self, batch_size: int) -> None:
        rows_of_rank(batch_size, self.comm.rank, self.comm.size)

    def _optimizer_class(self) -> "type[AdamW] | type[ShardedAdamW]":
        from ..sharded import ShardedAdamW

        return ShardedAdamW

    def _divided(self, model: TinyTransformer) -> tuple[Model, Callable[[int], int]]:
        parallel = DataParallelModel(model, self.comm)
        return parallel, parallel.maximum
