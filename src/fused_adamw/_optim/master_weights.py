"""Master weights: the float32 that a 16-bit parameter is rounded from, as state stores them.

For bfloat16 state keeps the rest, an int16: the master minus the parameter, both read as integers
of 32 bits. For float16 it keeps the master itself. docs/state-formats.md describes both.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Array, ArrayTypes


def _widened(params: Array) -> Array:
    """Parameters in the compute type."""
    if params.dtype.name == "bfloat16":
        params = params.view(np.uint16)
    if params.dtype == np.uint16:  # bfloat16
        return (params.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return params


def _is_rest(storage: np.dtype[Any]) -> bool:
    """Whether arrays of this dtype complete the parameters, so that 0 is a copy of these."""
    return storage == np.int16


def start_of(storage: np.dtype[Any], params: Array) -> Array | int:
    """The first values of an array that starts as the parameters; those of their rest are 0."""
    return 0 if _is_rest(storage) else _widened(params)


def with_whole_master(arrays: ArrayTypes) -> ArrayTypes:
    """The layout with float32 master weights in place of what completes the parameters."""
    if "master" not in arrays:
        return arrays
    return {**arrays, "master": (np.dtype(np.float32), arrays["master"][1])}


def read_master(stored: Array, params: Array) -> Array:
    """The master weights: a new float32 array where they are stored as a rest."""
    if not _is_rest(stored.dtype):
        return stored
    exact: NDArray[np.float32] = _widened(params)
    masters = (exact.view(np.int32) + stored.astype(np.int32)).view(np.float32)
    return np.where(np.isnan(masters), exact, masters)


def rest_of(masters: Array, params: Array) -> Array:
    """The rest of masters given in float32; 0 where one does not round to its parameter. A tie that
    was rounded towards zero, as to even, becomes the float32 next to it that rounds to the
    parameter."""
    exact = _widened(params)
    rest = masters.view(np.int32).astype(np.int64) - exact.view(np.int32)
    most = np.iinfo(np.int16).max
    kept = (np.abs(rest) <= most + 1) & ~np.isnan(masters) & ~np.isnan(exact)
    return np.where(kept, np.minimum(rest, most), 0).astype(np.int16)
