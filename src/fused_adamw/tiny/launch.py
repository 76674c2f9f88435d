"""How a training runs: in a single process, or on all ranks of an mpiexec.

`SingleProcess` and `MPIProcesses` have the same methods, so that the code that trains need not know
which of the two it runs in.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from .._distributed.agreement import raise_on_all_ranks
from ..optimizer import AdamW
from .data_parallel import DataParallelModel, rows_of_rank
from .model import Parameters, TinyTransformer
from .text_data import Batch
from .train_loop import History, Optimizer, train

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


class SingleProcess:
    """A training in this process alone."""

    is_main = True  # whether this process prints and writes files
    size = 1  # the number of processes

    def errors_on_all_ranks(self) -> AbstractContextManager[None]:
        """Raise an error of one process in all of them."""
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
        return _make_adamw(AdamW, parameters, lr, schedule, options)

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
        train(model, optimizer, batches, steps, on_step, history, int, on_repeated_signal)


class MPIProcesses:
    """A training on all ranks of an mpiexec, which divide each batch and the optimizer state."""

    def __init__(self) -> None:
        from .._distributed import mpi

        self.comm = mpi.private_duplicate(mpi.world())
        self.is_main, self.size = bool(self.comm.rank == 0), int(self.comm.size)

    def errors_on_all_ranks(self) -> AbstractContextManager[None]:
        """Raise an error of one process in all of them."""
        return raise_on_all_ranks(self.comm)

    def check_batch_size(self, batch_size: int) -> None:
        """Raise ValueError unless a batch can be divided among the processes."""
        rows_of_rank(batch_size, self.comm.rank, self.comm.size)

    def make_adamw(
        self,
        parameters: Parameters,
        lr: float,
        schedule: Callable[[int], float] | None = None,
        **options: Any,
    ) -> "AdamW | ShardedAdamW":
        """Return an AdamW of the parameters; `options` are those of its class."""
        from ..sharded import ShardedAdamW

        return _make_adamw(ShardedAdamW, parameters, lr, schedule, options)

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
        parallel = DataParallelModel(model, self.comm)
        over_ranks = parallel.maximum
        train(parallel, optimizer, batches, steps, on_step, history, over_ranks, on_repeated_signal)


def _make_adamw(
    kind: "type[AdamW] | type[ShardedAdamW]",
    parameters: Parameters,
    lr: float,
    schedule: Callable[[int], float] | None,
    options: dict[str, Any],
) -> "AdamW | ShardedAdamW":
    optimizer = kind(parameters, lr, **options)
    if schedule is not None:
        # Set afterwards: of a schedule only the first rate would be checked, and the highest is lr.
        optimizer.param_groups[0]["lr"] = schedule
    return optimizer
