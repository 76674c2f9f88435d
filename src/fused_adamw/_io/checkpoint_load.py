"""Loading: the file is verified as a whole, then read into the memory of its tensors."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from errno import EIO
from io import FileIO
from typing import Any, TypeAlias

import numpy as np

from .._core import DeferredSignals, abbreviated
from .._distributed.ranks import Ranks
from .._optim.arrays import (
    Array,
    Shape,
    ShardSlice,
    items_of_range,
    order_of,
    slabs,
    transposed_positions,
)
from .._optim.base import BaseOptimizer
from .._optim.options import check_flag
from .._optim.state_dict import (
    StateMatch,
    match_state,
    require_saved_roles,
    warn_of_conversion,
)
from .._optim.state_formats import storage_dtype
from .checkpoint_convert import convert_shards
from .checkpoint_schema import (
    UNREADABLE,
    CorruptCheckpointError,
    Header,
    MismatchedCheckpointError,
    read_checkpoint_header,
    restore_numbers,
    translate_read_errors,
    verify_tensors,
)
from .files import FilePath, open_regular, path_text, printable
from .json_values import read_metadata
from .safetensors_stream import PIECE_ELEMENTS, read_exactly

SCRATCH_ARRAYS = 14  # of PIECE_ELEMENTS with 8 bytes each
"""An upper bound of what reading allocates, plus 2 MiB for the allocators' own pages."""

ShardMemory: TypeAlias = tuple[ShardSlice, Array]
"""A shard of this rank, and memory for its elements, in memory order."""


def load(path: FilePath, optimizer: BaseOptimizer, convert: bool) -> dict[str, Any]:
    """The implementation of ``checkpoint.load_checkpoint``."""
    ranks = Ranks(optimizer._comm)
    call: dict[str, Any] = {}
    with optimizer._exclusive("load_checkpoint"), ExitStack() as stack:
        with ranks.agreement(call):
            call |= optimizer._collective_call("load_checkpoint")
            convert = check_flag("convert", convert)
            name = path_text(path)
            file = stack.enter_context(open_regular(name))
        header = _verify(name, file, ranks)
        with ranks.agreement():
            numbers, matches = _match(name, header, optimizer, convert)
            with translate_read_errors(name):
                extra = read_metadata(header.metadata, "extra")
            _require_scratch()
            if ranks.rank == 0:
                warn_of_conversion(printable(name), (match.difference for match in matches))
            optimizer._check_params()  # again, after what shows a warning
        with DeferredSignals():
            with ranks.agreement(), _partial_load_reported(name):
                _read(file, header, optimizer, ranks.rank, matches)
                optimizer._load_numbers(numbers)
            optimizer._gather_params()
    return extra


def _verify(path: str, file: FileIO, ranks: Ranks) -> Header:
    """The header of a file that is intact, and the same on every rank. Rank 0 verifies the file,
    and so does each rank that reads a copy of it."""
    with ranks.agreement(), translate_read_errors(path):
        header, identity = read_checkpoint_header(path, file), _identity(file)
        if ranks.rank == 0:
            verify_tensors(file, header)
    # It covers the checksums of all tensors.
    checksum = header.metadata["checksum"]
    expected = ranks.broadcast(checksum)
    with ranks.agreement():
        if checksum != expected:
            raise CorruptCheckpointError(f"{printable(path)} differs from the file read by rank 0")
    verified = ranks.broadcast(identity)
    with ranks.agreement(), translate_read_errors(path):
        if _identity(file) != verified:
            verify_tensors(file, header)
    return header


def _identity(file: FileIO) -> str:
    """What is the same on all machines that share a file, and differs between copies."""
    status = os.fstat(file.fileno())
    return f"file {status.st_ino} of {status.st_size} bytes, written at {status.st_mtime_ns}"


def _match(
    path: str, header: Header, optimizer: BaseOptimizer, convert: bool
) -> tuple[dict[str, Any], list[StateMatch]]:
    optimizer._check_params()
    try:
        numbers = restore_numbers(header.metadata, optimizer)
        matches = _match_tensors(header, numbers, optimizer, convert)
        optimizer._check_values(numbers)
    except UNREADABLE as error:
        reason = str(error) if type(error) is not KeyError else f"missing {error}"
        raise MismatchedCheckpointError(
            f"{printable(path)} does not match this optimizer: {printable(reason)}"
        ) from error
    return numbers, matches


def _match_tensors(
    header: Header, numbers: Mapping[str, Any], optimizer: BaseOptimizer, convert: bool
) -> list[StateMatch]:
    params = dict(zip(optimizer.names, optimizer._arrays, strict=True))
    _require_params(header, params)
    saved: dict[str, dict[str, tuple[np.dtype[Any], Shape]]] = {name: {} for name in params}
    for key, info in header.tensors.items():
        role, _, name = key.partition("/")
        if key.startswith("extra/"):
            continue
        if name not in saved:
            raise ValueError(f"unexpected {key}")
        if role != "params":
            saved[name][role] = (info.storage, info.shape)
    matches, options = [], optimizer._state_options
    for name, array in params.items():
        where, order = f"the state of {name!r}", numbers["state"][name].get("order")
        require_saved_roles(where, numbers, saved[name])
        matches.append(match_state(where, saved[name], order, options, array, convert))
    return matches


def _require_params(header: Header, arrays: Mapping[str, Array]) -> None:
    found = {key for key in header.tensors if key.startswith("params/")}
    expected = {f"params/{name}" for name in arrays}
    if found != expected:
        raise ValueError(
            f"missing {abbreviated(sorted(expected - found))}, unexpected "
            f"{abbreviated(sorted(found - expected))}: it belongs to a different model"
        )
    for name, array in arrays.items():
        info = header.tensors[f"params/{name}"]
        if (info.dtype, info.shape) != (array.dtype.name, array.shape):
            raise ValueError(
                f"params/{name} must have shape {array.shape} and dtype {array.dtype}; got "
                f"{info.shape} and {info.dtype}"
            )


def _require_scratch() -> None:
    """Raise MemoryError where there is not enough for what ``_read`` allocates: before it writes
    anything."""
    scratch = [np.empty(PIECE_ELEMENTS, np.int64) for _ in range(SCRATCH_ARRAYS)]
    del scratch


@contextmanager
def _partial_load_reported(path: str) -> Iterator[None]:
    """The file was intact a moment ago: its storage has failed, or another process wrote to it."""
    try:
        yield
    except MemoryError as error:  # another thread took the memory that was free a moment ago
        raise MemoryError(
            f"not enough memory ({error}); parameters and state are only partly loaded"
        ) from error
    except (OSError, EOFError) as error:
        number, reason = (
            (error.errno, error.strerror) if isinstance(error, OSError) else (EIO, error)
        )
        raise OSError(
            number, f"{reason}; parameters and state are only partly loaded", path
        ) from error


# ---------------------------------------------------------------------------- reading in place


def _read(
    file: FileIO,
    header: Header,
    optimizer: BaseOptimizer,
    rank: int,
    matches: list[StateMatch],
) -> None:
    """Read the parameters and the state of the shards of this rank."""
    arrays = optimizer._arrays
    for i, (name, match) in enumerate(zip(optimizer.names, matches, strict=True)):
        own = [shard for shard in optimizer._shards(i) if shard.rank == rank]
        if not own:
            continue
        memory = arrays[i].ravel("K").view(storage_dtype(arrays[i].dtype.name))
        shards = [(s, memory[s.begin : s.end]) for s in own]
        _read_tensor(file, header, f"params/{name}", arrays[i], shards)
        if match.difference is None:
            for role in optimizer._state_entries(arrays[i]):
                shards = [(s, optimizer._own_state(s, role)) for s in own]
                _read_tensor(file, header, f"{role}/{name}", arrays[i], shards)
        else:
            convert_shards(file, header, match, optimizer, name, own)


def _read_tensor(
    file: FileIO, header: Header, key: str, param: Array, shards: list[ShardMemory]
) -> None:
    """Read what ``shards`` need of a tensor that is stored as it is in memory, or shaped."""
    info = header.tensors[key]
    if len(info.shape) > 1 and order_of(param) == "F":
        _read_transposed(file, header, key, shards)
        return
    for shard, data in shards:
        first, last = items_of_range(shard.begin, shard.end, info.size, param.size)
        if first < last:
            position = header.position(key) + first * info.storage.itemsize
            read_exactly(file, position, data)


def _read_transposed(file: FileIO, header: Header, key: str, shards: list[ShardMemory]) -> None:
    """Read a tensor in C order into memory in Fortran order."""
    info = header.tensors[key]
    piece = np.empty(min(info.size, PIECE_ELEMENTS), info.storage)
    position = header.position(key)
    if shards[0][0].size == info.size:
        whole = shards[0][1].reshape(info.shape, order="F")
        for slab in slabs(whole, PIECE_ELEMENTS):
            data = piece[: slab.size]
            read_exactly(file, position, data)
            slab[...] = data.reshape(slab.shape)
            position += data.nbytes
        return
    for begin in range(0, info.size, PIECE_ELEMENTS):
        data = piece[: info.size - begin]
        read_exactly(file, position + begin * info.storage.itemsize, data)
        positions = transposed_positions(begin, begin + data.size, info.shape)
        for shard, memory in shards:
            inside = (shard.begin <= positions) & (positions < shard.end)
            memory[positions[inside] - shard.begin] = data[inside]
