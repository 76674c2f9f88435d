"""Memory for the arrays of an optimizer's state."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .._core import shown
from .arrays import Array

Allocate: TypeAlias = Callable[[int, np.dtype[Any]], Array]
"""Returns an array of zeros, in one dimension, of a size and a dtype, as ``np.zeros`` does."""

STAGGER = 1088  # bytes: 17 cache lines
LARGE = 1 << 20  # bytes: from here on ``malloc`` begins an array at the start of a page
NARROW = 4  # bytes: elements of fewer


def stagger(size: int, itemsize: int, position: int) -> int:
    """How many bytes an array of a tensor's state is moved from where it would begin.

    Large arrays all begin at the same offset in a page. Memory serves several streams of 8 or 16
    bits an element better where these offsets differ, and those of 32 bits where they do not
    (docs/performance.md has the figures).

    Args:
        size: of the array, in elements.
        itemsize: bytes an element.
        position: of the array among those of the state: 0, 1, ...
    """
    is_moved = itemsize < NARROW and size * itemsize >= LARGE
    return (position + 1) * STAGGER if is_moved else 0


def zeros(
    size: int, dtype: np.dtype[Any], position: int, allocate: Allocate | None = None
) -> Array:
    """A one-dimensional array of zeros, whose memory this function does not write.

    Args:
        size: number of elements.
        dtype: of the elements.
        position: of the array among those of the tensor's state.
        allocate: what the caller asked for, in place of ``np.zeros``; None: nothing.

    Raises:
        TypeError, ValueError: ``allocate`` is not a function, or returns something else.
    """
    if not (allocate is None or callable(allocate)):
        raise TypeError(f"allocate must be None or a function like np.zeros; got {shown(allocate)}")
    if size == 0:  # memory maps cannot be empty
        return np.zeros(size, dtype)
    if allocate is None:
        skipped = stagger(size, dtype.itemsize, position) // dtype.itemsize
        return np.zeros(skipped + size, dtype)[skipped:]
    array = allocate(size, dtype)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"allocate must return an array; got {type(array).__name__}")
    if (array.shape, array.dtype) != ((size,), dtype):
        raise ValueError(
            f"allocate must return an array of shape {(size,)} and dtype {dtype}; got one of shape "
            f"{array.shape} and dtype {array.dtype}"
        )
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise ValueError(
            "allocate must return a contiguous, writable array; got one with contiguous="
            f"{array.flags.c_contiguous}, writeable={array.flags.writeable}"
        )
    if array.any():
        raise ValueError("allocate must return an array of zeros; got other values")
    return np.asarray(array)
