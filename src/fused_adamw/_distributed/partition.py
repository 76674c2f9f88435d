"""Partition of the state over ranks; every rank computes the same partition.

The tensors are laid end to end in buckets of one dtype: what one collective moves. Each rank owns
one contiguous range of each bucket, which may be empty; all its ranges are its shard. Tensors are
cut only at multiples of ``CHUNK`` elements, so that the blocks of state with scales stay whole, and
the partial sums of the gradient norm are those of a single process.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import numpy as np

from .._core import CHUNK, shown
from .._optim.arrays import ShardSlice
from .._optim.state_formats import ELEMENT_TYPES

BUCKET_BYTES = 1 << 23
MIN_BUCKET_BYTES = CHUNK * max(row.itemsize for row in ELEMENT_TYPES.values())
MAX_COLLECTIVE_BYTES = (1 << 31) - 1  # many MPIs count in 32 bits
PACKED_FRACTION = 16  # tensors smaller than this fraction of a bucket share one

TensorRange: TypeAlias = tuple[int, int, int]
"""A tensor, and the begin and end of some of its elements, in the order they lie in memory."""


@dataclass(frozen=True)
class Bucket:
    """The elements that one reduce-scatter and one all-gather move."""

    dtype: str  # of the parameters
    parts: tuple[tuple[ShardSlice, ...], ...]  # of each rank; end to end they are the bucket

    @cached_property
    def counts(self) -> list[int]:
        """The number of elements of each rank."""
        return [sum(s.size for s in part) for part in self.parts]

    @cached_property
    def starts(self) -> list[int]:
        """Where in the bucket the part of each rank begins."""
        return list(accumulate(self.counts, initial=0))[:-1]

    @cached_property
    def slices(self) -> list[ShardSlice]:
        """The slices of all ranks, in order."""
        return [s for part in self.parts for s in part]

    @cached_property
    def tensors(self) -> list[int]:
        """The tensors that the bucket has elements of."""
        return list(dict.fromkeys(s.tensor for s in self.slices))

    @property
    def sum_dtype(self) -> np.dtype[Any]:
        """The dtype that gradients are added up in: the compute type."""
        return np.dtype(ELEMENT_TYPES[self.dtype].compute)

    @cached_property
    def nbytes(self) -> int:
        """The most that a collective moves."""
        return sum(self.counts) * self.sum_dtype.itemsize

    def part_nbytes(self, rank: int) -> int:
        """The most that a rank receives of a reduce-scatter."""
        return self.counts[rank] * self.sum_dtype.itemsize

    @cached_property
    def contiguous_range(self) -> TensorRange | None:
        """The bucket as a range of one tensor, which need not be packed; else None."""
        if len(self.tensors) > 1:
            return None
        return self.tensors[0], self.slices[0].begin, self.slices[-1].end


def partition(
    sizes: Sequence[int], dtypes: Sequence[str], num_ranks: int, max_bucket_bytes: int
) -> list[Bucket]:
    """Partition tensors of these numbers of elements and dtypes.

    No bucket exceeds ``max_bucket_bytes``, which must suffice for a chunk of each dtype. No rank
    owns more than an equal share and a chunk.
    """
    owned = [0] * num_ranks  # bytes
    buckets = []
    for dtype in dict.fromkeys(dtypes):
        itemsize, moved = ELEMENT_TYPES[dtype].itemsize, sum_itemsize(dtype)
        of_dtype = {i: sizes[i] for i, other in enumerate(dtypes) if other == dtype and sizes[i]}
        for ranges in _fill_buckets(of_dtype, max_bucket_bytes // moved):
            parts = _divide(ranges, owned, itemsize)
            for rank, part in enumerate(parts):
                owned[rank] += itemsize * sum(s.size for s in part)
            buckets.append(Bucket(dtype, tuple(parts)))
    return buckets


def sum_itemsize(dtype: str) -> int:
    """The bytes of an element of the sum of gradients of this dtype."""
    return ELEMENT_TYPES[ELEMENT_TYPES[dtype].compute].itemsize


def check_bucket_bytes(bucket_bytes: Any) -> None:
    """Raise TypeError or ValueError unless a bucket of this size can be partitioned."""
    if not isinstance(bucket_bytes, (int, np.integer)) or isinstance(bucket_bytes, bool):
        raise TypeError(f"bucket_bytes must be an integer; got {shown(bucket_bytes)}")
    if bucket_bytes < MIN_BUCKET_BYTES:
        raise ValueError(
            f"bucket_bytes must be {MIN_BUCKET_BYTES:,} or more; got {shown(bucket_bytes)}"
        )


def slices_by_tensor(buckets: Sequence[Bucket], num_tensors: int) -> list[list[ShardSlice]]:
    """The slices of each tensor, in order."""
    found: list[list[ShardSlice]] = [[] for _ in range(num_tensors)]
    for bucket in buckets:
        for s in bucket.slices:
            found[s.tensor].append(s)
    return found


def _fill_buckets(sizes: dict[int, int], capacity: int) -> Iterator[list[TensorRange]]:
    """The contents of one bucket after another: large tensors on their own, small ones together."""
    shared: list[TensorRange] = []
    free = capacity
    whole = capacity // CHUNK * CHUNK
    for i, size in sizes.items():
        if size > max(CHUNK, capacity // PACKED_FRACTION):
            for begin in range(0, size, whole):
                yield [(i, begin, min(begin + whole, size))]
            continue
        if size > free:
            yield shared
            shared, free = [], capacity
        shared.append((i, 0, size))
        free -= size
    if shared:
        yield shared


def _divide(
    ranges: list[TensorRange], owned: list[int], itemsize: int
) -> list[tuple[ShardSlice, ...]]:
    """Cut the contents of a bucket into a part for each rank, to even out what they own."""
    starts = list(accumulate((end - begin for _, begin, end in ranges), initial=0))
    share = (sum(owned) + itemsize * starts[-1]) / len(owned)
    wanted = list(accumulate((max(0.0, share - own) for own in owned), initial=0.0))
    cuts = [_nearest_cut(ranges, starts, round(starts[-1] * x / wanted[-1])) for x in wanted]
    return [
        tuple(_slices_between(ranges, starts, rank, *ends))
        for rank, ends in enumerate(pairwise(cuts))
    ]


def _nearest_cut(ranges: list[TensorRange], starts: list[int], position: int) -> int:
    """The nearest position to this one where a tensor may be cut."""
    if position >= starts[-1]:
        return starts[-1]
    k = bisect_right(starts, position) - 1
    _, begin, end = ranges[k]
    inside = begin + position - starts[k]
    nearest = (inside + CHUNK // 2) // CHUNK * CHUNK
    return starts[k] + min(max(nearest, begin), end) - begin


def _slices_between(
    ranges: list[TensorRange], starts: list[int], rank: int, first: int, last: int
) -> Iterator[ShardSlice]:
    """The slices in [first, last) of the ranges laid end to end."""
    for k in range(bisect_right(starts, first) - 1, len(ranges)):
        (tensor, range_begin, range_end), start = ranges[k], starts[k]
        begin, end = max(first, start), min(last, start + range_end - range_begin)
        if begin >= end:
            return
        shift = range_begin - start
        yield ShardSlice(tensor, begin + shift, end + shift, rank)
