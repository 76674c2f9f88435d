"""Saving: rank 0 writes the file, piece by piece, from its own memory and what others send."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._distributed.ranks import Ranks
from .._optim.arrays import Array, items_of_range, order_of, transposed_positions
from .._optim.base import BaseOptimizer
from .._optim.options import SCHEDULED
from .atomic_write import atomic_write
from .checkpoint_schema import (
    PLACEHOLDER,
    build_metadata,
    extra_arrays,
    optimizer_tensors,
    seal,
    start_checksum,
)
from .files import FilePath, path_text
from .safetensors_stream import (
    PIECE_BYTES,
    PIECE_ELEMENTS,
    TensorInfo,
    arrange,
    encode_header,
    pieces,
    swap_order,
)

COPIED_BYTES = 1 << 18  # fits in a processor's cache


class Source(NamedTuple):
    """Where the tensors of a file come from."""

    optimizer: BaseOptimizer
    ranks: Ranks
    tensors: dict[str, TensorInfo]  # in the order of the file; on other ranks without extra arrays
    arrays: dict[str, Array]  # extra arrays; on rank 0
    received: NDArray[np.uint8]  # for a piece that another rank sends; on rank 0


def save(
    path: FilePath,
    optimizer: BaseOptimizer,
    extra: Mapping[str, Any] | None,
    arrays: Mapping[str, Array] | None,
) -> None:
    """The implementation of ``save_checkpoint``. Rank 0 alone uses path, extra and arrays."""
    with optimizer._exclusive("save_checkpoint", changes=False):
        _save(path, optimizer, extra, arrays)


def _require_usable(optimizer: BaseOptimizer, numbers: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for a number that every step, and loading, would refuse: the
    file that is there is better. Schedules are not asked."""
    optimizer._check_options()
    groups = [
        group | {name: 0.0 for name in SCHEDULED if callable(group[name])}
        for group in numbers["param_groups"]
    ]
    optimizer._check_values({**numbers, "param_groups": groups})


def _save(
    path: FilePath,
    optimizer: BaseOptimizer,
    extra: Mapping[str, Any] | None,
    arrays: Mapping[str, Array] | None,
) -> None:
    ranks = Ranks(optimizer._comm)
    name, metadata, extras = "", dict[str, str](), dict[str, Array]()
    call: dict[str, Any] = {}
    with ranks.agreement(call):
        call |= optimizer._collective_call("save_checkpoint", t=optimizer.t)
        numbers = optimizer._state_numbers()
        _require_usable(optimizer, numbers)
        if ranks.rank == 0:
            extras, metadata = extra_arrays(arrays), build_metadata(numbers, extra)
            name = path_text(path)
        infos = {key: TensorInfo(a.dtype.name, a.shape) for key, a in extras.items()}
        # Code of the caller, such as the __array__ of an extra array, has run since.
        optimizer._sources.check_unchanged(optimizer.param_groups, False)
        tensors = arrange({**optimizer_tensors(optimizer), **infos})
        if ranks.rank == 0:
            encode_header(tensors, seal(metadata, tensors, dict.fromkeys(tensors, PLACEHOLDER)))
        # Allocated before anything is sent.
        received = np.empty(0 if optimizer._comm is None or ranks.rank else PIECE_BYTES, np.uint8)
        source = Source(optimizer, ranks, tensors, extras, received)
    with ranks.agreement(), ranks.transfer(received):
        stream = _contents(source)
        if ranks.rank == 0:
            _write(name, tensors, metadata, stream)
        for _ in stream:  # other ranks send
            pass


def _write(
    path: str,
    tensors: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    stream: Iterator[tuple[str, Array]],
) -> None:
    placeholders = dict.fromkeys(tensors, PLACEHOLDER)
    checksums = dict.fromkeys(tensors, start_checksum().hexdigest())  # of what is empty
    buffer = np.empty(COPIED_BYTES, np.uint8)
    with atomic_write(path) as file:
        file.write(encode_header(tensors, seal(metadata, tensors, placeholders)))
        for name, piece in groupby(stream, key=lambda item: item[0]):
            checksum = start_checksum()
            for _, data in piece:
                for copy in _copies(data, buffer.view(data.dtype)):
                    checksum.update(copy)
                    file.write(copy)
            checksums[name] = checksum.hexdigest()
        file.seek(0)
        file.write(encode_header(tensors, seal(metadata, tensors, checksums)))


def _copies(data: Array, buffer: Array) -> Iterator[memoryview]:
    """The bytes for the file, copied part by part: another thread may write to an array meanwhile,
    and what is written has to be what its checksum is of."""
    for begin in range(0, data.size, buffer.size):
        part = data[begin : begin + buffer.size]
        copy = buffer[: part.size]
        copy.view(np.uint8)[...] = part.view(np.uint8)  # no conversion, whatever the bits mean
        swap_order(copy)
        yield copy.view(np.uint8).data


# ---------------------------------------------------------------------------- contents


def _contents(source: Source) -> Iterator[tuple[str, Array]]:
    """On rank 0 the data of the file, in order; the other ranks send theirs meanwhile."""
    optimizer, ranks = source.optimizer, source.ranks
    indices = {name: i for i, name in enumerate(optimizer.names)}
    params = optimizer._arrays
    for key, info in source.tensors.items():
        role, name = key.split("/", 1)
        if role == "extra":
            found = pieces(source.arrays[key])
        elif role == "params":
            found = pieces(params[indices[name]]) if ranks.rank == 0 else iter(())
        elif len(info.shape) > 1 and order_of(params[indices[name]]) == "F":
            found = _transposed_state(source, indices[name], role, info)
        else:
            found = _flat_state(source, indices[name], role, info)
        for piece in found:
            yield key, piece


def _flat_state(source: Source, tensor: int, role: str, info: TensorInfo) -> Iterator[Array]:
    """A state array in memory order: on rank 0 all of it."""
    optimizer, ranks = source.optimizer, source.ranks
    size = optimizer._param_array(tensor).size
    for shard in optimizer._shards(tensor):
        if shard.rank == ranks.rank == 0:
            yield from pieces(optimizer._own_state(shard, role))
        elif shard.rank == ranks.rank:
            for piece in pieces(optimizer._own_state(shard, role)):
                ranks.send(piece)
        elif ranks.rank == 0:
            buffer = source.received.view(info.storage)
            begin, end = items_of_range(shard.begin, shard.end, info.size, size)
            for at in range(begin, end, buffer.size):
                piece = buffer[: min(buffer.size, end - at)]
                ranks.receive(piece, shard.rank)
                yield piece


def _transposed_state(source: Source, tensor: int, role: str, info: TensorInfo) -> Iterator[Array]:
    """A state array in Fortran order, as pieces in C order: on rank 0 all of it.

    Where there are several shards, a piece has elements of each; every rank sends its own.
    """
    optimizer, ranks = source.optimizer, source.ranks
    shards = optimizer._shards(tensor)
    if len(shards) == 1 and shards[0].rank == 0:
        if ranks.rank == 0:
            state = optimizer._own_state(shards[0], role)
            yield from pieces(state.reshape(info.shape, order="F"))
        return
    ends = np.array([shard.end for shard in shards])
    owners = np.array([shard.rank for shard in shards])
    own = [shard for shard in shards if shard.rank == ranks.rank]
    piece = np.empty(min(info.size, PIECE_ELEMENTS), info.storage)
    for begin in range(0, info.size, PIECE_ELEMENTS):
        positions = transposed_positions(begin, min(begin + PIECE_ELEMENTS, info.size), info.shape)
        owner = owners[np.searchsorted(ends, positions, side="right")]
        data = piece[: positions.size]
        for shard in own:
            inside = (shard.begin <= positions) & (positions < shard.end)
            data[inside] = optimizer._own_state(shard, role)[positions[inside] - shard.begin]
        if ranks.rank == 0:
            _receive_elements(source, data, owner)
            yield data
        elif (mine := data[owner == ranks.rank]).size:
            ranks.send(mine)


def _receive_elements(source: Source, data: Array, owner: NDArray[np.int64]) -> None:
    """Receive those elements of a piece that other ranks own."""
    for rank in np.unique(owner[owner != 0]):
        elements = owner == rank
        count = int(np.count_nonzero(elements))
        received = source.received.view(data.dtype)[:count]
        source.ranks.receive(received, int(rank))
        data[elements] = received
