"""Collectives on buckets, overlapped with computation."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .._optim.arrays import Array, ShardSlice
from .mpi import Comm, Request, make_progress, start_allgather, start_reduce_scatter
from .partition import Bucket

COPIED_AT_ONCE = 1 << 16  # elements: small enough that copying a non-contiguous piece is cheap


class StagingBuffer:
    """Memory for one packed bucket and this rank's part of its sum, and the collective that uses
    it."""

    def __init__(self, bucket_nbytes: int, part_nbytes: int) -> None:
        self._packed = np.empty(bucket_nbytes, np.uint8)
        self._part = np.empty(part_nbytes, np.uint8)
        self.request: Request | None = None
        self.unpack_to: tuple[Bucket, Sequence[Array]] | None = None  # after an all-gather

    def view(self, bucket: Bucket, dtype: np.dtype[Any]) -> Array:
        """The memory as the elements of a bucket, of a dtype that is no wider than the sum's."""
        elements: Array = self._packed[: sum(bucket.counts) * dtype.itemsize].view(dtype)
        return elements

    def part(self, bucket: Bucket, rank: int) -> Array:
        """Memory for the sum of the elements of a bucket that a rank owns."""
        elements: Array = self._part[: bucket.part_nbytes(rank)].view(bucket.sum_dtype)
        return elements

    def wait(self) -> None:
        """Wait for the collective, and unpack what it has gathered."""
        if self.request is not None:
            self.request.Wait()
            self.request = None
        if self.unpack_to is not None:
            bucket, targets = self.unpack_to
            unpack(self.view(bucket, dtype_of(bucket, targets)), bucket.slices, targets)
            self.unpack_to = None


class BucketCommunicator:
    """Reduce-scatters and all-gathers of buckets.

    A bucket within one tensor is sent from, and gathered in, the user's arrays; others are packed
    in one of two staging buffers. Each has the size of the largest bucket and of this rank's
    largest part of one. At most two collectives that use these buffers are in flight at a time; of
    the others, any number until ``finish``.

    Args:
        comm: a private communicator.
        buckets: all buckets of the partition.
    """

    def __init__(self, comm: Comm, buckets: Sequence[Bucket]) -> None:
        self.comm = comm
        moved = buckets if comm.size > 1 else ()
        largest = max((bucket.nbytes for bucket in moved), default=0)
        part = max((bucket.part_nbytes(comm.rank) for bucket in moved), default=0)
        self._buffers = [StagingBuffer(largest, part) for _ in range(2)]
        self._direct: list[Request] = []  # all-gathers in the user's arrays

    def own(self, bucket: Bucket) -> tuple[ShardSlice, ...]:
        """This rank's part."""
        return bucket.parts[self.comm.rank]

    def reduce(
        self, buckets: Sequence[Bucket], grads: Sequence[Array | None]
    ) -> Iterator[tuple[int, Array]]:
        """Sum gradients over the ranks.

        Args:
            buckets: those to reduce, in the same order on all ranks.
            grads: the elements of each tensor, as from ``ravel_like``; None counts as zeros.

        Yields:
            The position of a bucket in ``buckets``, and this rank's part of the sum, in
            ``sum_dtype``. That lies in a staging buffer, and may be changed, until the next one is
            asked for.
        """
        received: list[Array] = []
        for k, bucket in enumerate(buckets):
            received.append(self._start_reduction(k, bucket, grads))
            if k > 0:
                self._buffers[(k - 1) % 2].wait()
                yield k - 1, received[k - 1]
        if buckets:
            self._buffers[(len(buckets) - 1) % 2].wait()
            yield len(buckets) - 1, received[-1]

    def _start_reduction(self, k: int, bucket: Bucket, grads: Sequence[Array | None]) -> Array:
        buffer = self._buffers[k % 2]
        buffer.wait()
        sent = self._contiguous(bucket, grads)
        # MPI cannot add up 16-bit numbers, and mpi4py does not know what is not aligned.
        if sent is None or sent.dtype != bucket.sum_dtype or not sent.flags.aligned:
            sent = buffer.view(bucket, bucket.sum_dtype)
            pack(sent, bucket.slices, grads)
        received = buffer.part(bucket, self.comm.rank)
        buffer.request = start_reduce_scatter(self.comm, sent, received, bucket.counts)
        return received

    def start_gather(self, k: int, bucket: Bucket, arrays: Sequence[Array]) -> None:
        """Start to fill each rank's arrays with the parts of all ranks.

        Args:
            k: the position of the bucket, as in ``reduce``, or counted from 0.
            bucket: what to gather.
            arrays: contiguous elements of each tensor, with this rank's own part.
        """
        if self.comm.size == 1:
            return
        direct = self._contiguous(bucket, arrays)
        if direct is not None:
            self._direct.append(start_allgather(self.comm, direct, bucket.counts, bucket.starts))
        else:
            buffer = self._buffers[k % 2]
            buffer.wait()
            packed = buffer.view(bucket, dtype_of(bucket, arrays))
            pack(packed[bucket.starts[self.comm.rank] :], self.own(bucket), arrays)
            buffer.request = start_allgather(self.comm, packed, bucket.counts, bucket.starts)
            buffer.unpack_to = bucket, arrays
        under_way = [b.request for b in self._buffers if b.request is not None]
        make_progress(self._direct + under_way)

    def finish(self) -> None:
        """Wait until all that was started has arrived."""
        for request in self._direct:
            request.Wait()
        self._direct.clear()
        for buffer in self._buffers:
            buffer.wait()

    def _contiguous(self, bucket: Bucket, arrays: Sequence[Array | None]) -> Array | None:
        """The bucket where it lies, if it is contiguous there."""
        if bucket.contiguous_range is None:
            return None
        tensor, begin, end = bucket.contiguous_range
        array = arrays[tensor]
        return array[begin:end] if isinstance(array, np.ndarray) else None


def dtype_of(bucket: Bucket, arrays: Sequence[Array]) -> np.dtype[Any]:
    """The dtype of those arrays that a bucket has elements of."""
    dtype: np.dtype[Any] = arrays[bucket.tensors[0]].dtype
    return dtype


def narrow(elements: Array, dtype: np.dtype[Any]) -> Array:
    """Convert contiguous elements to a dtype that is no wider, in their own memory."""
    if elements.dtype == dtype:
        return elements
    narrowed: Array = elements.view(np.uint8)[: elements.size * dtype.itemsize].view(dtype)
    for begin in range(0, elements.size, COPIED_AT_ONCE):  # what is written was read before
        end = min(begin + COPIED_AT_ONCE, elements.size)
        narrowed[begin:end] = elements[begin:end].astype(dtype)
    return narrowed


def pack(target: Array, slices: Sequence[ShardSlice], sources: Sequence[Array | None]) -> None:
    """Lay slices end to end; zeros for a tensor that is None."""
    at = 0
    for s in slices:
        source = sources[s.tensor]
        for begin in range(s.begin, s.end, COPIED_AT_ONCE):
            end = min(begin + COPIED_AT_ONCE, s.end)
            target[at : at + end - begin] = 0 if source is None else source[begin:end]
            at += end - begin


def unpack(source: Array, slices: Sequence[ShardSlice], targets: Sequence[Array]) -> None:
    """The reverse of ``pack``."""
    at = 0
    for s in slices:
        targets[s.tensor][s.begin : s.end] = source[at : at + s.size]
        at += s.size
