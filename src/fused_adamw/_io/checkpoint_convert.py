"""Conversion of state from a file: other formats, other memory orders, more or fewer arrays."""

from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from math import prod

import numpy as np
from numpy.typing import NDArray

from .._optim.arrays import (
    Array,
    MemoryOrder,
    Shape,
    ShardSlice,
    items_of_range,
    order_of,
    transposed_positions,
)
from .._optim.base import BaseOptimizer
from .._optim.conversion import convert_range, without_blocks
from .._optim.state_dict import StateMatch
from .._optim.state_formats import TensorState, has_scales
from .checkpoint_schema import Header
from .safetensors_stream import PIECE_ELEMENTS, read_exactly


def convert_shards(
    file: FileIO,
    header: Header,
    match: StateMatch,
    optimizer: BaseOptimizer,
    name: str,
    shards: Sequence[ShardSlice],
) -> None:
    """Read the state of shards of one tensor, converted to how the optimizer stores it.

    Their parameters have been read: arrays that start as these are made from them where the file
    lacks them.
    """
    array = optimizer._param_array(shards[0].tensor)
    stored = StoredState(file, header, match, name, array.shape)
    params = array.ravel("K")
    roles = list(optimizer._state_entries(array))
    own = [{role: optimizer._own_state(s, role) for role in roles} for s in shards]
    if array.ndim > 1 and stored.order != order_of(array):
        if not has_scales(match.own_format):
            _scatter(stored, shards, [TensorState(match.own_format, x) for x in own], params)
            return
        read = stored.gather
    else:
        read = stored.read
    for shard, arrays in zip(shards, own, strict=True):
        for begin in range(shard.begin, shard.end, PIECE_ELEMENTS):
            end = min(begin + PIECE_ELEMENTS, shard.end)
            target = TensorState(match.own_format, {})
            for role, x in arrays.items():
                inside = begin - shard.begin, end - shard.begin
                target.arrays[role] = x[slice(*items_of_range(*inside, x.size, shard.size))]
            convert_range(read(begin, end), target, params[begin:end])


class StoredState:
    """The state of one tensor, in a file."""

    def __init__(
        self, file: FileIO, header: Header, match: StateMatch, name: str, shape: Shape
    ) -> None:
        self._file, self._header, self._format, self._shape = file, header, match.format, shape
        self.order: MemoryOrder = match.order or "C"
        self.size = prod(shape)
        self._keys = {role: f"{role}/{name}" for role in match.roles}

    def read(self, begin: int, end: int) -> TensorState:
        """The elements [begin, end), in the order of the file; ``begin`` is at a block."""
        arrays = {}
        for role, key in self._keys.items():
            info = self._header.tensors[key]
            first, last = items_of_range(begin, end, info.size, self.size)
            arrays[role] = np.empty(last - first, info.storage)
            position = self._header.position(key) + first * info.storage.itemsize
            read_exactly(self._file, position, arrays[role])
        return TensorState(self._format, arrays)

    def stream(self, begins: Iterable[int]) -> Iterator[tuple[NDArray[np.intp], TensorState]]:
        """Pieces of the file: the positions of their elements in the other memory order, and
        their state, with one item an element."""
        for begin in begins:
            end = min(begin + PIECE_ELEMENTS, self.size)
            state = without_blocks(self.read(begin, end), end - begin)
            yield transposed_positions(begin, end, self._shape, self.order), state

    def gather(self, begin: int, end: int) -> TensorState:
        """The elements [begin, end) of the other memory order, with one item an element."""
        other: MemoryOrder = "F" if self.order == "C" else "C"
        pieces = np.unique(transposed_positions(begin, end, self._shape, other) // PIECE_ELEMENTS)
        begins = (int(piece) * PIECE_ELEMENTS for piece in pieces)
        found: TensorState | None = None
        for positions, state in self.stream(begins):
            inside = (begin <= positions) & (positions < end)
            if found is None:
                empty = {role: np.empty(end - begin, x.dtype) for role, x in state.arrays.items()}
                found = TensorState(state.format, empty)
            for role, x in state.arrays.items():
                found.arrays[role][positions[inside] - begin] = x[inside]
        assert found is not None
        return found


def _scatter(
    stored: StoredState,
    shards: Sequence[ShardSlice],
    targets: Sequence[TensorState],
    params: Array,
) -> None:
    """Convert element by element, in the order of the file, which is read once."""
    for positions, state in stored.stream(range(0, stored.size, PIECE_ELEMENTS)):
        for shard, target in zip(shards, targets, strict=True):
            inside = (shard.begin <= positions) & (positions < shard.end)
            found = {role: x[inside] for role, x in state.arrays.items()}
            at = positions[inside]
            converted = {role: np.empty(at.size, x.dtype) for role, x in target.arrays.items()}
            convert_range(
                TensorState(state.format, found), TensorState(target.format, converted), params[at]
            )
            for role, x in converted.items():
                target.arrays[role][at - shard.begin] = x
