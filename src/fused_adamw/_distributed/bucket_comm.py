"""What the ranks of a sharded optimizer say to one another; the only file that knows mpi4py.

Whatever may go wrong on one rank goes wrong on all: a rank that raised alone would leave the others
waiting for it.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np

try:
    from mpi4py import MPI
except ImportError as error:  # also where no MPI library is found
    raise ImportError(
        f'sharding needs mpi4py and an MPI: pip install "fused-adamw[mpi]" ({error})'
    ) from None

from .._core import resolve_threads
from .partition import Bucket, Strip

COPIED_AT_ONCE = 1 << 16  # elements
AS_RAISED = (TypeError, ValueError, OverflowError, MemoryError)
_DUPLICATE = MPI.Comm.Create_keyval()


def world() -> Any:
    """The communicator of all processes that were started together."""
    return MPI.COMM_WORLD


def own_duplicate(comm: Any) -> Any:
    """A communicator of the same ranks for messages of ours alone; made once for each ``comm``."""
    if not isinstance(comm, MPI.Intracomm):
        raise TypeError(
            f"comm is of type {type(comm).__name__}; expected an intracommunicator of mpi4py"
        )
    duplicate = comm.Get_attr(_DUPLICATE)
    if duplicate is None:
        duplicate = comm.Dup()
        duplicate.Set_errhandler(MPI.ERRORS_ARE_FATAL)
        comm.Set_attr(_DUPLICATE, duplicate)
    return duplicate


def abort_on_exception(comm: Any) -> None:
    """From now on, an exception that nothing catches ends the processes of all ranks."""
    report = sys.excepthook

    def report_and_abort(*exception: Any) -> None:
        sys.stderr = sys.__stderr__  # which may have been silenced
        report(*exception)
        comm.Abort(1)

    sys.excepthook = report_and_abort


def default_threads(comm: Any) -> int | None:
    """The threads for a rank, where ranks of one machine share its processors; else None."""
    machine = comm.Split_type(MPI.COMM_TYPE_SHARED)
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    sharing: int = machine.allgather(affinity).count(affinity)
    machine.Free()
    if sharing == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, resolve_threads(None) // sharing)


# ---------------------------------------------------------------------------- agreement


@contextmanager
def agreed(comm: Any, facts: dict[str, Any] | None = None) -> Iterator[None]:
    """Run the block on all ranks; where it raises on one, raise the same on all.

    ``facts``, by name, may be filled in by the block. Where they differ between ranks, ValueError
    says which. One all-reduce of 24 bytes, if there is nothing to raise.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    digest = 0 if failure is not None or not facts else _digest(facts)
    signs = np.array([failure is not None, digest, -digest], np.int64)
    comm.Allreduce(MPI.IN_PLACE, signs, MPI.MAX)
    if signs[0]:
        _raise_first(comm, failure)
    if signs[1] != -signs[2]:
        _raise_difference(comm, facts or {})


def _digest(facts: Mapping[str, Any]) -> int:
    return int.from_bytes(blake2b(repr(facts).encode(), digest_size=7).digest(), "little")


def _raise_first(comm: Any, failure: Exception | None) -> None:
    """Raise what the first of the ranks that failed did."""
    told = comm.allgather(failure if failure is None else _portable(failure))
    rank, error = next((rank, error) for rank, error in enumerate(told) if error is not None)
    alike = len({str(other) for other in told}) == 1
    if alike or isinstance(error, OSError):
        raise error from failure
    raise type(error)(f"rank {rank}: {error}") from failure


def _portable(error: Exception) -> Exception:
    """An exception that can be sent, with the message of this one."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    if type(error) in AS_RAISED or type(error).__module__.startswith("fused_adamw."):
        return type(error)(*map(str, error.args))
    for kind in AS_RAISED:
        if isinstance(error, kind):
            return kind(f"{type(error).__name__}: {error}")
    return RuntimeError(f"{type(error).__name__}: {error}")


def _raise_difference(comm: Any, facts: Mapping[str, Any]) -> None:
    told = comm.allgather({name: repr(fact) for name, fact in facts.items()})
    first = told[0]
    for rank, other in enumerate(told):
        for name in {**first, **other}:
            mine, its = first.get(name, "missing"), other.get(name, "missing")
            if mine != its:
                raise ValueError(
                    f"the ranks disagree: {name} is {_short(mine)} on rank 0 and {_short(its)} on "
                    f"rank {rank}"
                )
    raise RuntimeError("the ranks disagree")


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def sums_of_all(comm: Any, sums: Any, counts: Sequence[int]) -> Any:
    """The float64 numbers of all ranks, laid end to end; ``counts``: how many of each."""
    found = np.empty(sum(counts))
    comm.Allgatherv(sums, [found, counts])
    return found


# ---------------------------------------------------------------------------- buckets


class _Room:
    """A buffer, and what goes on in it."""

    def __init__(self, size: int) -> None:
        self.bytes = np.empty(size, np.uint8)
        self.request: Any = None
        self.gathered: Bucket | None = None  # to be unpacked when it is there

    def of(self, bucket: Bucket) -> Any:
        return self.bytes[: bucket.nbytes].view(bucket.dtype)


class Exchange:
    """Reduce-scatters and all-gathers of buckets: of those through a room two at a time, of those
    straight into the parameters as many as there are until ``finish``.

    A bucket within one tensor goes straight from and to the user's arrays; others are packed in one
    of two rooms of the size of the largest bucket.

    Args:
        comm: a communicator of our own.
        plan: the buckets.
        params: each tensor's memory, in one dimension.
    """

    def __init__(self, comm: Any, plan: Sequence[Bucket], params: Sequence[Any]) -> None:
        self.comm, self.params = comm, params
        largest = max((bucket.nbytes for bucket in plan), default=0)
        self._rooms = [_Room(largest if comm.size > 1 else 0) for _ in range(2)]
        self._pending: list[Any] = []  # all-gathers straight into the parameters

    def own(self, bucket: Bucket) -> tuple[Strip, ...]:
        """This rank's part."""
        return bucket.parts[self.comm.rank]

    def reduced(
        self, buckets: Sequence[Bucket], grads: Sequence[Any]
    ) -> Iterator[tuple[int, Bucket, Any]]:
        """The number of each bucket, it, and the sum over the ranks of this rank's part of it.

        The sum lies in a room, and may be changed, until the next one is asked for. ``grads``: each
        tensor's elements in the order of the parameter's, in one dimension; or None.
        """
        received = [None, None]  # by room
        for k, bucket in enumerate(buckets):
            received[k % 2] = self._start_reduction(k, bucket, grads)
            if k > 0:
                self._wait_for(k - 1)
                yield k - 1, buckets[k - 1], received[(k - 1) % 2]
        if buckets:
            last = len(buckets) - 1
            self._wait_for(last)
            yield last, buckets[last], received[last % 2]

    def _wait_for(self, k: int) -> None:
        room = self._rooms[k % 2]
        room.request.Wait()
        room.request = None

    def _start_reduction(self, k: int, bucket: Bucket, grads: Sequence[Any]) -> Any:
        room = self._emptied_room(k)
        packed = room.of(bucket)
        received = packed[: bucket.counts[self.comm.rank]]
        stretch = bucket.stretch
        source = None if stretch is None else grads[stretch.tensor]
        if stretch is not None and isinstance(source, np.ndarray):
            sent = source[stretch.begin : stretch.end]
            room.request = self.comm.Ireduce_scatter(sent, received, bucket.counts, MPI.SUM)
        else:
            pack(packed, bucket.strips, grads)
            room.request = self.comm.Ireduce_scatter(MPI.IN_PLACE, packed, bucket.counts, MPI.SUM)
        return received

    def start_gather(self, k: int, bucket: Bucket) -> None:
        """Let all ranks have the parameters of this rank's part, and this one theirs. ``k``: the
        number of the bucket, as of ``reduced``, or else from 0 on."""
        if self.comm.size == 1:
            return
        stretch = bucket.stretch
        if stretch is not None:
            whole = self.params[stretch.tensor][stretch.begin : stretch.end]
            self._pending.append(self._gather(whole, bucket))
        else:
            room = self._emptied_room(k)
            whole, start = room.of(bucket), bucket.starts[self.comm.rank]
            pack(whole[start:], self.own(bucket), self.params)
            room.request, room.gathered = self._gather(whole, bucket), bucket
        self._progress()

    def _gather(self, whole: Any, bucket: Bucket) -> Any:
        kind = {"float32": MPI.FLOAT, "float64": MPI.DOUBLE}[whole.dtype.name]
        return self.comm.Iallgatherv(MPI.IN_PLACE, [whole, bucket.counts, bucket.starts, kind])

    def finish(self) -> None:
        """Wait until all parameters are there."""
        MPI.Request.Waitall(self._pending)
        self._pending.clear()
        for room in self._rooms:
            self._empty(room)

    def _progress(self) -> None:
        """Most MPIs move messages only while they are called."""
        under_way = [room.request for room in self._rooms if room.request is not None]
        MPI.Request.Testall(self._pending + under_way)

    def _emptied_room(self, k: int) -> _Room:
        room = self._rooms[k % 2]
        self._empty(room)
        return room

    def _empty(self, room: _Room) -> None:
        if room.gathered is None:
            return
        room.request.Wait()
        unpack(room.of(room.gathered), room.gathered.strips, self.params)
        room.request = room.gathered = None


def pack(target: Any, strips: Sequence[Strip], sources: Sequence[Any]) -> None:
    """Lay strips end to end; zeros for a tensor that there is none of."""
    at = 0
    for strip in strips:
        source = sources[strip.tensor]
        for begin, end in _pieces(strip):
            stop = at + end - begin
            target[at:stop] = 0 if source is None else source[begin:end]
            at = stop


def unpack(source: Any, strips: Sequence[Strip], targets: Sequence[Any]) -> None:
    at = 0
    for tensor, begin, end in strips:
        targets[tensor][begin:end] = source[at : at + end - begin]
        at += end - begin


def _pieces(strip: Strip) -> Iterator[tuple[int, int]]:
    """So small that a copy of one is no matter, which those in another memory order take."""
    for begin in range(strip.begin, strip.end, COPIED_AT_ONCE):
        yield begin, min(begin + COPIED_AT_ONCE, strip.end)
