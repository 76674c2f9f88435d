"""Who keeps what: a plan that each rank makes for itself, and all of them alike.

The tensors are laid end to end, in buckets of one dtype: what one collective moves. Each rank owns
one stretch of each bucket, which may be empty; all its stretches are its shard. Tensors are cut
only at multiples of ``UNIT`` elements, so that blocks of 8-bit state stay whole, and the sums that
the gradient norm is made of are those of a single process.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

UNIT = 16384  # elements: CHUNK of csrc/dispatch.c, and a multiple of BLOCK of state.py
PACKED_SHARE = 16  # tensors of less than this part of a bucket share one


class Strip(NamedTuple):
    """The elements [begin, end) of a tensor, in the order in which they lie in memory."""

    tensor: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Bucket:
    """What one reduce-scatter and one all-gather move."""

    dtype: str
    parts: tuple[tuple[Strip, ...], ...]  # what each rank owns; laid end to end, all of it

    @cached_property
    def counts(self) -> list[int]:
        """The number of elements of each rank."""
        return [sum(strip.size for strip in part) for part in self.parts]

    @cached_property
    def starts(self) -> list[int]:
        """Where in the bucket the part of each rank begins."""
        return list(accumulate(self.counts, initial=0))[:-1]

    @cached_property
    def strips(self) -> list[Strip]:
        return [strip for part in self.parts for strip in part]

    @cached_property
    def size(self) -> int:
        return sum(self.counts)

    @cached_property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    @cached_property
    def stretch(self) -> Strip | None:
        """The bucket itself, where it lies within one tensor; it need not be packed, then."""
        strips = self.strips
        if len({strip.tensor for strip in strips}) > 1:
            return None
        return Strip(strips[0].tensor, strips[0].begin, strips[-1].end)


def make_plan(
    sizes: Sequence[int], dtypes: Sequence[str], ranks: int, bucket_bytes: int
) -> list[Bucket]:
    """The buckets for tensors of these numbers of elements and dtypes.

    No bucket has more than ``bucket_bytes``, which holds a unit of each dtype or more; no rank owns
    more than its equal share and a unit.
    """
    owned = [0] * ranks  # bytes
    buckets = []
    for dtype in dict.fromkeys(dtypes):
        itemsize = np.dtype(dtype).itemsize
        own_sizes = {i: sizes[i] for i, other in enumerate(dtypes) if other == dtype and sizes[i]}
        for strips in _filled(own_sizes, bucket_bytes // itemsize):
            parts = _divided(strips, owned, itemsize)
            for rank, part in enumerate(parts):
                owned[rank] += itemsize * sum(strip.size for strip in part)
            buckets.append(Bucket(dtype, tuple(map(tuple, parts))))
    return buckets


def _filled(sizes: dict[int, int], capacity: int) -> Iterator[list[Strip]]:
    """Strips for one bucket after the other: large tensors by themselves, small ones together."""
    shared: list[Strip] = []
    room = capacity
    whole = capacity // UNIT * UNIT
    for i, size in sizes.items():
        if size > max(UNIT, capacity // PACKED_SHARE):
            for begin in range(0, size, whole):
                yield [Strip(i, begin, min(begin + whole, size))]
            continue
        if size > room:
            yield shared
            shared, room = [], capacity
        shared.append(Strip(i, 0, size))
        room -= size
    if shared:
        yield shared


def _divided(strips: list[Strip], owned: list[int], itemsize: int) -> list[list[Strip]]:
    """The strips of a bucket, cut and dealt to the ranks so as to even out what they own."""
    starts = list(accumulate((strip.size for strip in strips), initial=0))
    share = (sum(owned) + itemsize * starts[-1]) / len(owned)
    wishes = list(accumulate((max(0.0, share - own) for own in owned), initial=0.0))
    cuts = [_cut(strips, starts, round(starts[-1] * wish / wishes[-1])) for wish in wishes]
    return [_between(strips, starts, *ends) for ends in pairwise(cuts)]


def _cut(strips: list[Strip], starts: list[int], position: int) -> int:
    """The nearest position to this one where a tensor may be cut."""
    if position >= starts[-1]:
        return starts[-1]
    k = bisect_right(starts, position) - 1
    strip = strips[k]
    inside = strip.begin + position - starts[k]
    nearest = (inside + UNIT // 2) // UNIT * UNIT
    return starts[k] + min(max(nearest, strip.begin), strip.end) - strip.begin


def _between(strips: list[Strip], starts: list[int], first: int, last: int) -> list[Strip]:
    """What lies in [first, last) of the strips laid end to end."""
    found = []
    for k in range(bisect_right(starts, first) - 1, len(strips)):
        strip, start = strips[k], starts[k]
        begin, end = max(first, start), min(last, start + strip.size)
        if begin >= end:
            break
        shift = strip.begin - start
        found.append(Strip(strip.tensor, begin + shift, end + shift))
    return found
