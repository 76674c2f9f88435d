"""MPI, by way of mpi4py: the only file that imports it.

The functions take a communicator of mpi4py; the rest of the package uses only them and the methods
of that object.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

try:
    from mpi4py import MPI
except ImportError as error:  # also where no MPI library is found
    raise ImportError(
        f'sharding requires mpi4py and an MPI library: pip install "fused-adamw[mpi]" ({error})'
    ) from None

from .._core import default_num_threads, environment_sets_threads
from .._optim.arrays import Array
from .operations import CollectiveOperations
from .pipes import flush_until_read

Comm: TypeAlias = Any  # mpi4py.MPI.Intracomm; mpi4py is not there when types are checked
Request: TypeAlias = Any  # mpi4py.MPI.Request

UNSIGNED = {2: MPI.UINT16_T, 4: MPI.UINT32_T, 8: MPI.UINT64_T}
SECONDS_TO_READ = 2.0  # the longest wait for mpiexec before the processes of all ranks are ended
_DUPLICATE = MPI.Comm.Create_keyval()
_OPERATIONS = MPI.Comm.Create_keyval()


def world() -> Comm:
    """The communicator of all processes that were started together."""
    return MPI.COMM_WORLD


def private_duplicate(comm: Comm) -> Comm:
    """A communicator of the same ranks for our messages alone; made once for each ``comm``."""
    if isinstance(comm, MPI.Comm) and comm == MPI.COMM_NULL:
        raise ValueError(
            "comm must include this process and must not have been freed; got MPI.COMM_NULL"
        )
    if not isinstance(comm, MPI.Intracomm):
        raise TypeError(f"comm must be an intracommunicator of mpi4py; got {type(comm).__name__}")
    duplicate = comm.Get_attr(_DUPLICATE)
    if duplicate is None or duplicate == MPI.COMM_NULL:  # it has been freed
        duplicate = comm.Dup()
        duplicate.Set_errhandler(MPI.ERRORS_ARE_FATAL)
        duplicate.Set_attr(_OPERATIONS, CollectiveOperations())
        comm.Set_attr(_DUPLICATE, duplicate)
    return duplicate


def operations_of(duplicate: Comm) -> CollectiveOperations:
    """The collective operations on what ``private_duplicate`` returned."""
    operations: CollectiveOperations = duplicate.Get_attr(_OPERATIONS)
    return operations


def abort_on_exception(comm: Comm) -> None:
    """From now on, an uncaught exception ends the processes of all ranks."""
    report = sys.excepthook

    def report_and_abort(*exception: Any) -> None:
        sys.stderr = sys.__stderr__  # it may have been redirected
        report(*exception)
        abort(comm, 1)

    sys.excepthook = report_and_abort


def abort(comm: Comm, status: int) -> NoReturn:
    """End the processes of all ranks, whatever they wait for; what this one printed is kept."""
    try:
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                flush_until_read(stream, SECONDS_TO_READ)  # mpiexec discards what is unread
    finally:  # whatever a signal raises
        comm.Abort(status)
        os._exit(status)  # MPICH may return before it ends this process


def threads_of_rank(comm: Comm, given: int | None) -> int | None:
    """The number of threads that a rank was given; without one, its part of the cores that ranks of
    one machine share, or None where it shares none. All ranks call this, whatever they were given.
    """
    machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    sharing: int = machine.allgather(affinity).count(affinity)
    machine.Free()
    if given is not None or sharing == 1 or environment_sets_threads():
        return given
    return max(1, default_num_threads() // sharing)


def replace_by_maximum(comm: Comm, numbers: NDArray[np.int64]) -> None:
    """Replace each number by its maximum over the ranks, in place."""
    comm.Allreduce(MPI.IN_PLACE, numbers, MPI.MAX)


def gather_vectors(
    comm: Comm, vector: NDArray[np.float64], counts: Sequence[int]
) -> NDArray[np.float64]:
    """The vectors of all ranks, laid end to end; ``counts``: the length of each."""
    gathered = np.empty(sum(counts))
    comm.Allgatherv(vector, [gathered, counts])
    return gathered


def receive_bytes(comm: Comm, buffer: Array, rank: int) -> int:
    """Receive a message of a rank; return its length, which may be less than that of the buffer."""
    status = MPI.Status()
    comm.Recv(buffer.view(np.uint8), rank, status=status)
    return int(status.Get_count(MPI.BYTE))


def start_reduce_scatter(
    comm: Comm, sent: Array, received: Array, counts: Sequence[int]
) -> Request:
    """Start to sum ``sent`` over the ranks; each gets ``counts[rank]`` elements in ``received``,
    which is memory of its own: in place, MPICH copies between ranges that overlap."""
    return comm.Ireduce_scatter(sent, received, counts, MPI.SUM)


def start_allgather(
    comm: Comm, elements: Array, counts: Sequence[int], starts: Sequence[int]
) -> Request:
    """Start to fill an array in which each rank has its own part already."""
    bits = elements.view(f"u{elements.itemsize}")  # MPI has no bfloat16
    return comm.Iallgatherv(MPI.IN_PLACE, [bits, counts, starts, UNSIGNED[elements.itemsize]])


def make_progress(requests: Sequence[Request]) -> None:
    """Most MPIs move messages only while they are called."""
    MPI.Request.Testall(list(requests))
