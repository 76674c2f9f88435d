"""Types of arrays, nests and ranges of arrays, and the order of elements in memory."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._core import CHUNK

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
MemoryOrder: TypeAlias = Literal["C", "F"]

ArrayTypes: TypeAlias = Mapping[str, tuple[np.dtype[Any], Shape]]
"""By role, the dtype and shape of arrays."""

ArrayTree: TypeAlias = Array | Sequence["ArrayTree"] | Mapping[Any, "ArrayTree"]
"""One array, or lists, tuples and mappings of arrays, nested in one another at most 100 deep."""

GradientTree: TypeAlias = Array | Sequence["GradientTree"] | Mapping[Any, "GradientTree"] | None
"""Gradients in the structure of the parameters; None where a tensor has no gradient."""


class ShardSlice(NamedTuple):
    """The elements [begin, end) of a tensor, in memory order, whose state one rank keeps."""

    tensor: int
    begin: int
    end: int
    rank: int

    @property
    def size(self) -> int:
        return self.end - self.begin

    @property
    def num_chunks(self) -> int:
        """How many partial sums of the gradient norm there are of these elements."""
        return -(-self.size // CHUNK)


def persistent_views(arrays: Sequence[Any]) -> list[Array | None]:
    """The memory of arrays as plain NumPy arrays, for ``view_of``; None for an ndarray subclass:
    a view would keep it, and what it refers to, where the garbage collector cannot see it."""
    of_subclass = [isinstance(x, np.ndarray) and type(x) is not np.ndarray for x in arrays]
    return [None if sub else np.asarray(x) for x, sub in zip(arrays, of_subclass, strict=True)]


def view_of(array: Any, view: Array | None) -> Array:
    """An array as a plain NumPy array: ``view`` where it is kept, else a new one."""
    return np.ndarray.view(array, np.ndarray) if view is None else view


def order_of(array: Array) -> MemoryOrder:
    """The memory order of a dense array: "C" (also where it is both), or "F"."""
    return "C" if array.flags.c_contiguous else "F"


def ravel_like(array: Array, order: MemoryOrder) -> Array:
    """The elements of an array in an order, in one dimension, without a copy.

    Returns a view where the elements lie in memory in this order; else an iterator (``array.flat``)
    whose slices can be read and assigned like those of an array.
    """
    if order == "F":
        array = array.T
    return array.reshape(-1) if array.flags.c_contiguous else array.flat  # type: ignore[return-value]


def reshape_like(flat: Array, array: Array) -> Array:
    """Flat elements in the memory order of ``array``, in the shape of ``array``."""
    return flat.reshape(np.shape(array), order=order_of(array))


def slabs(array: Array, max_elements: int) -> Iterator[Array]:
    """Views that cover an array one after the other, in C order, whatever its memory order is."""
    if array.size <= max_elements:
        if array.size:
            yield array
        return
    rows = max_elements // (array.size // len(array))
    if rows:
        for begin in range(0, len(array), rows):
            yield array[begin : begin + rows]
    else:
        for row in array:
            yield from slabs(row, max_elements)


def transposed_positions(
    begin: int, end: int, shape: Shape, order: MemoryOrder = "C"
) -> NDArray[np.intp]:
    """Where the elements [begin, end) of one order are in the other.

    Args:
        begin, end: a range of the elements in ``order``.
        shape: of the array.
        order: "C" gives positions in Fortran order, and "F" in C order.
    """
    longer = [length for length in shape if length != 1] or [1]  # NumPy takes less than 64 of them
    index = np.unravel_index(np.arange(begin, end), longer, order)
    return np.ravel_multi_index(index, longer, order="F" if order == "C" else "C")


def items_of_range(begin: int, end: int, items: int, size: int) -> tuple[int, int]:
    """Which items of an array of the state belong to the elements [begin, end) of a tensor.

    An array has one item an element, or one for 2, 4, 8, ... elements: scales of blocks, and
    elements of less than a byte. Which of these follows from the number of items; where several
    would fit, the tensor is so small that it is never divided, and all give the same.

    Args:
        begin, end: 0 or a multiple of the block size; a multiple of it or ``size``.
        items: in the whole array.
        size: elements of the whole tensor.
    """
    share = 1
    while -(-size // share) > items:
        share *= 2
    return begin // share, -(-end // share)
