"""One step that all ranks take together, each on its shard."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import isfinite
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from .._core import BoundTensors, as_number, clip_factor, norm_of_chunks
from .._optim.arrays import Array, ShardSlice
from .._optim.base import BaseOptimizer
from .._optim.options import OPTIONS
from .._optim.param_groups import Hyperparams, as_python_numbers
from .bucket_comm import BucketCommunicator, dtype_of, narrow
from .mpi import gather_vectors
from .partition import Bucket


class RangeOptions(TypedDict):
    """The arguments of ``BoundTensors.step_range`` that all buckets of a step have in common."""

    hypers: list[Hyperparams]
    grad_scale: float
    maximize: bool
    num_threads: int | None


def numbers_of_step(
    optimizer: BaseOptimizer, grad_scale: float
) -> tuple[RangeOptions, float | None]:
    """The numbers of the next step, and ``max_grad_norm``, as numbers of Python: code of objects
    that the caller has put there could fail on one rank while the others wait for it.

    Raises:
        TypeError, ValueError: one of them is no such number.
    """
    options: RangeOptions = {
        "hypers": list(map(as_python_numbers, optimizer._hypers_at(optimizer.t + 1))),
        "grad_scale": as_number("grad_scale", grad_scale),
        "maximize": bool(optimizer.maximize),
        "num_threads": OPTIONS["num_threads"].check("num_threads", optimizer.num_threads),
    }
    return options, OPTIONS["max_grad_norm"].check("max_grad_norm", optimizer.max_grad_norm)


def needs_norm(max_grad_norm: float | None, skip_nonfinite: bool) -> bool:
    """Whether a step depends on the norm of the gradients."""
    return max_grad_norm is not None or skip_nonfinite


class CollectiveStep:
    """Reduce, update and gather, bucket by bucket.

    Args:
        bound: the parameters, with this rank's slices as slots, bucket by bucket.
        buckets: the partition.
        params: contiguous elements of each parameter.
        comm: moves the buckets.
    """

    def __init__(
        self,
        bound: BoundTensors,
        buckets: Sequence[Bucket],
        params: Sequence[Array],
        comm: BucketCommunicator,
    ) -> None:
        self._bound, self._buckets, self._params, self.comm = bound, buckets, params, comm
        self._own = [comm.own(bucket) for bucket in buckets]
        self._first_slot = list(accumulate(map(len, self._own), initial=0))
        self._num_sums = [
            sum(s.num_chunks for bucket in buckets for s in bucket.parts[rank])
            for rank in range(comm.comm.size)
        ]
        # Where among this rank's sums of squares those of each bucket begin.
        counts = (sum(s.num_chunks for s in own) for own in self._own)
        self._first_sum = list(accumulate(counts, initial=0))
        self._sum_order = _sum_order(buckets, comm.comm.size)

    def run(
        self,
        grads: Sequence[Array | None],
        options: RangeOptions,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
    ) -> tuple[float | None, bool]:
        """Take the step.

        Args:
            grads: the elements of each gradient, as from ``ravel_like``, or None; the same tensors
                lack one on all ranks.
            options, max_grad_norm, skip_nonfinite: of the optimizer, and equal on all ranks but for
                ``num_threads``.

        Returns:
            The norm where it was needed, and whether the parameters were updated.
        """
        active = [
            i
            for i, bucket in enumerate(self._buckets)
            if any(grads[tensor] is not None for tensor in bucket.tensors)
        ]
        if not needs_norm(max_grad_norm, skip_nonfinite):
            if self.comm.comm.size > 1:
                self._update_by_sums(active, grads, options)
            else:
                self._update_by_means(active, grads, options, 1.0)
            return None, True
        norm = self._average_and_norm(active, grads, options)
        if skip_nonfinite and not isfinite(norm):
            return norm, False
        self._update_by_means(active, grads, options, clip_factor(norm, max_grad_norm))
        return norm, True

    def _update_by_sums(
        self, active: list[int], grads: Sequence[Array | None], options: RangeOptions
    ) -> None:
        """Reduce, update and gather one bucket after another."""
        ranks = self.comm.comm.size
        # A power of two divides as well as a factor of the kernel, unless that is rounded with it.
        exact = options["grad_scale"] == 1 and ranks & (ranks - 1) == 0
        for k, part in self.comm.reduce([self._buckets[i] for i in active], grads):
            dtype = dtype_of(self._buckets[active[k]], self._params)
            in_kernel = exact and part.dtype == dtype
            if not in_kernel:
                np.divide(part, ranks, out=part)
                part = narrow(part, dtype)
            means = [
                None if grads[s.tensor] is None else mean
                for s, mean in _split(part, self._own[active[k]])
            ]
            clip = 1 / ranks if in_kernel else 1.0
            self._bound.step_range(self._first_slot[active[k]], means, clip=clip, **options)
            self.comm.start_gather(k, self._buckets[active[k]], self._params)
        self.comm.finish()

    def _update_by_means(
        self,
        active: list[int],
        grads: Sequence[Array | None],
        options: RangeOptions,
        clip: float,
    ) -> None:
        """Update by gradients that are the mean already, and gather."""
        for k, i in enumerate(active):
            means = self._own_grads(i, grads)
            self._bound.step_range(self._first_slot[i], means, clip=clip, **options)
            self.comm.start_gather(k, self._buckets[i], self._params)
        self.comm.finish()

    def _average_and_norm(
        self, active: list[int], grads: Sequence[Array | None], options: RangeOptions
    ) -> float:
        """Overwrite this rank's slices of the gradients with the mean; return the norm of all."""
        sums = np.zeros(self._num_sums[self.comm.comm.rank])
        if self.comm.comm.size == 1:
            for i in active:
                self._add_squares(sums, i, grads, options["num_threads"])
        else:
            for k, part in self.comm.reduce([self._buckets[i] for i in active], grads):
                self._keep_mean(part, self._own[active[k]], grads)
                # While the mean is in the cache.
                self._add_squares(sums, active[k], grads, options["num_threads"])
        total = gather_vectors(self.comm.comm, sums, self._num_sums)[self._sum_order]
        return norm_of_chunks(total, options["grad_scale"])

    def _keep_mean(
        self, part: Array, own: Sequence[ShardSlice], grads: Sequence[Array | None]
    ) -> None:
        for s, total in _split(part, own):
            grad = grads[s.tensor]
            if isinstance(grad, np.ndarray) and grad.dtype == total.dtype:
                np.divide(total, self.comm.comm.size, out=grad[s.begin : s.end])
            elif grad is not None:
                np.divide(total, self.comm.comm.size, out=total)
                grad[s.begin : s.end] = total

    def _add_squares(
        self,
        sums: NDArray[np.float64],
        i: int,
        grads: Sequence[Array | None],
        num_threads: int | None,
    ) -> None:
        """Put the sums of squares of this rank's part of a bucket in their places."""
        own_grads, at = self._own_grads(i, grads), self._first_sum[i]
        found = self._bound.sums_of_squares(self._first_slot[i], own_grads, num_threads)
        for s, grad in zip(self._own[i], own_grads, strict=True):
            if grad is not None:
                sums[at : at + s.num_chunks], found = found[: s.num_chunks], found[s.num_chunks :]
            at += s.num_chunks

    def _own_grads(self, i: int, grads: Sequence[Array | None]) -> list[Array | None]:
        """The gradients of this rank's part of a bucket, where there are any."""
        own = ((s, grads[s.tensor]) for s in self._own[i])
        return [None if grad is None else grad[s.begin : s.end] for s, grad in own]


def _split(part: Array, slices: Sequence[ShardSlice]) -> Iterator[tuple[ShardSlice, Array]]:
    """A rank's part of a bucket, slice by slice."""
    at = 0
    for s in slices:
        yield s, part[at : at + s.size]
        at += s.size


def _sum_order(buckets: Sequence[Bucket], num_ranks: int) -> NDArray[np.intp]:
    """Where, among the sums of squares of all ranks laid end to end, those lie that a single
    process adds up one after another."""
    starts: dict[ShardSlice, int] = {}
    at = 0
    for rank in range(num_ranks):
        for s in (s for bucket in buckets for s in bucket.parts[rank]):
            starts[s] = at
            at += s.num_chunks
    ranges = [np.arange(starts[s], starts[s] + s.num_chunks) for s in sorted(starts)]
    return np.concatenate(ranges) if ranges else np.zeros(0, np.intp)
