"""Checkpoints of ``ShardedAdamW``: the files of ``checkpoint.py``, whatever the number of ranks.

A file that several ranks saved is read by one ``AdamW``, or by another number of ranks, and the
other way round. No rank ever has more of another's state than a piece of 4 MiB; of an array in
Fortran order, whose moments are written in C order, one such array.
"""

import json
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .._core import BLOCK
from .._distributed.bucket_comm import agreed
from .._distributed.partition import Strip
from .._optim.state_formats import order_of
from ..checkpoint import (
    DTYPES,
    HEADER_LIMIT,
    CorruptCheckpointError,
    FilePath,
    MismatchedCheckpointError,
    begun_checksum,
    damage_reported,
    known_metadata,
    metadata_of,
    params_of,
    replacing,
    require_model,
    restored,
)
from ..sharded import ShardedAdamW, lined_up
from .sigint import interrupt_deferred

PIECE = 1 << 22  # bytes
CODES = {np.dtype(dtype).name: code for code, dtype in DTYPES.items() if code != "BF16"}
NO_CHECKSUM = "0" * 64  # in its place until it is known


class Entry(NamedTuple):
    """A tensor of a file."""

    dtype: Any
    shape: tuple[int, ...]
    begin: int = 0  # byte, behind the header

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * int(self.dtype.itemsize)


Entries = dict[str, Entry]


def save_checkpoint(
    path: FilePath, optimizer: ShardedAdamW, *, extra: Mapping[str, Any] | None = None
) -> None:
    """Write the parameters and the state of all ranks to one file; all of them have to call it.

    As ``checkpoint.save_checkpoint``, whole or not at all. Rank 0 writes, piece by piece, what the
    others send; so only it has to reach the file.

    Args:
        path, extra: as there. Those of rank 0 count.
        optimizer: all of it is saved.

    Raises on all ranks alike: TypeError or ValueError for an ``extra`` or names that cannot be
    written, OSError for what goes wrong with the file.
    """
    entries = _placed(_entries(optimizer))
    with agreed(optimizer.comm):
        first = optimizer.comm.rank == 0
        metadata = metadata_of(optimizer.state_numbers(), extra) if first else {}
        if first:
            _header(entries, {**metadata, "checksum": NO_CHECKSUM})
        # All that is allocated for long is so before anything is sent.
        rooms = _rooms(optimizer, entries) if first else None
    with interrupt_deferred(), agreed(optimizer.comm):
        pieces = _pieces_of_all(optimizer, entries, rooms)
        try:
            if first:
                _write(Path(os.path.realpath(path)), entries, metadata, pieces)
        finally:
            for _ in pieces:  # on the other ranks, and where rank 0 failed: send, receive
                pass


def load_checkpoint(path: FilePath, optimizer: ShardedAdamW) -> dict[str, Any]:
    """Return the parameters and the state of all ranks to what a file holds; all have to call it.

    As ``checkpoint.load_checkpoint``, without ``convert``. Rank 0 checks the file as a whole; then
    each rank reads the parts that are its own, so all have to reach the same file: what a copy on
    another host has behind its header is not checked.

    Returns the ``extra`` that was saved, {} without one.

    Raises on all ranks alike, with nothing changed: CorruptCheckpointError,
    MismatchedCheckpointError or NewerCheckpointError; OSError where the file cannot be read. Only
    where the file cannot be read any more after it was checked, that leaves some of it loaded.
    """
    comm = optimizer.comm
    found: Any = None
    with agreed(comm):
        if comm.rank == 0:
            found = _verified(path)
    header, metadata, entries = comm.bcast(found)
    with agreed(comm):
        extra, state = _fitting(path, optimizer, metadata, entries)
        file = open(path, "rb")  # noqa: SIM115
    with file:
        with agreed(comm):
            if file.read(len(header)) != header:
                raise CorruptCheckpointError(f"{os.fspath(path)} is another file than for rank 0")
        with interrupt_deferred(), agreed(comm):
            _read_own(file, len(header), optimizer, entries)
    with interrupt_deferred():
        optimizer.load_numbers(state)
        optimizer.gather_params()
    return extra


# ---------------------------------------------------------------------------- what a file holds


def _entries(optimizer: ShardedAdamW) -> Entries:
    entries = {}
    for i, (name, array) in enumerate(params_of(optimizer).items()):
        entries[f"params/{name}"] = Entry(array.dtype, array.shape)
        for role, (dtype, shape) in optimizer.roles(i).items():
            entries[f"{role}/{name}"] = Entry(np.dtype(dtype), shape)
    return entries


def _placed(entries: Entries) -> Entries:
    """In the order of safetensors, which aligns each: the widest first, then by name."""
    placed, begin = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        placed[name] = entry._replace(begin=begin)
        begin += entry.nbytes
    return placed


def _header(entries: Entries, metadata: Mapping[str, str]) -> bytes:
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, entry in entries.items():
        described[name] = {
            "dtype": CODES[entry.dtype.name],
            "shape": entry.shape,
            "data_offsets": [entry.begin, entry.begin + entry.nbytes],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise ValueError("names or extra do not fit into a safetensors file: header too large")
    return len(text).to_bytes(8, "little") + text


# ---------------------------------------------------------------------------- saving


def _write(
    target: Path,
    entries: Entries,
    metadata: dict[str, str],
    pieces: Iterator[tuple[int, Any]],
) -> None:
    checksum = begun_checksum(entries, metadata)
    start = len(_header(entries, {**metadata, "checksum": NO_CHECKSUM}))
    with replacing(target) as file:
        for at, piece in pieces:
            checksum.update(piece)
            file.seek(start + at)
            file.write(piece)
        file.seek(0)
        file.write(_header(entries, {**metadata, "checksum": checksum.hexdigest()}))


def _rooms(optimizer: ShardedAdamW, entries: Entries) -> tuple[Any, Any]:
    """For a piece that is received; for the largest array that is transposed."""
    arrays = params_of(optimizer)
    transposed = (
        entry.nbytes
        for key, entry in entries.items()
        if not key.startswith("params/") and _is_transposed(arrays[key.split("/", 1)[1]], entry)
    )
    return np.empty(PIECE, np.uint8), np.empty(max(transposed, default=0), np.uint8)


def _pieces_of_all(
    optimizer: ShardedAdamW, entries: Entries, rooms: tuple[Any, Any] | None
) -> Iterator[tuple[int, Any]]:
    """On rank 0, the contents of the file: where a piece goes, and it, by name, as the checksum
    has them. On the other ranks, what they own of it goes to rank 0."""
    names = {name: i for i, name in enumerate(optimizer.names)}
    arrays = params_of(optimizer)
    first = optimizer.comm.rank == 0
    for key in sorted(entries):
        role, name = key.split("/", 1)
        array, begin = arrays[name], entries[key].begin
        if role == "params":
            found = _pieces(lined_up(array, "C")) if first else iter(())
        else:
            found = _state_pieces(optimizer, names[name], role, entries[key], rooms)
            if rooms is not None and _is_transposed(array, entries[key]):
                found = _transposed(found, array, entries[key], rooms[1])
        for piece in found:
            yield begin, piece
            begin += piece.nbytes


def _is_transposed(array: Any, entry: Entry) -> bool:
    return len(entry.shape) > 1 and order_of(array) == "F"


def _transposed(pieces: Iterator[Any], array: Any, entry: Entry, room: Any) -> Iterator[Any]:
    """The pieces of an array in Fortran order, put together, as pieces in C order."""
    whole = room[: entry.nbytes].view(entry.dtype)
    at = 0
    for piece in pieces:
        whole[at : at + piece.size] = piece
        at += piece.size
    return _pieces(lined_up(whole.reshape(entry.shape, order="F"), "C"))


def _pieces(elements: Any) -> Iterator[Any]:
    size = len(elements)
    step = PIECE // elements[:0].dtype.itemsize
    for begin in range(0, size, step):
        yield elements[begin : begin + step]


def _state_pieces(
    optimizer: ShardedAdamW, tensor: int, role: str, entry: Entry, rooms: tuple[Any, Any] | None
) -> Iterator[Any]:
    """What is kept of a tensor: on rank 0 all of it, in order."""
    comm = optimizer.comm
    room = None if rooms is None else rooms[0].view(entry.dtype)
    for rank, strip in optimizer.owners(tensor):
        if comm.rank == rank == 0:
            yield from _pieces(optimizer.own_state(strip, role))
        elif comm.rank == rank:
            for piece in _pieces(optimizer.own_state(strip, role)):
                comm.Send(piece.view(np.uint8), 0)
        elif room is not None:
            begin, end = _range(strip, role)
            for at in range(begin, end, room.size):
                piece = room[: min(room.size, end - at)]
                comm.Recv(piece.view(np.uint8), rank)
                yield piece


def _range(strip: Strip, role: str) -> tuple[int, int]:
    """Which elements of an array of the state belong to a strip."""
    if role.endswith("_scale"):
        return strip.begin // BLOCK, -(-strip.end // BLOCK)
    return strip.begin, strip.end


# ---------------------------------------------------------------------------- loading


def _verified(path: FilePath) -> tuple[bytes, dict[str, str], Entries]:
    """The header, the metadata and the tensors of a file whose checksum is right."""
    with open(path, "rb") as file, damage_reported(path):
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_LIMIT:
            raise ValueError("header too large")
        text = file.read(size)
        header = size.to_bytes(8, "little") + text
        metadata = known_metadata(path, header)
        entries = _described_entries(json.loads(text), os.fstat(file.fileno()).st_size - 8 - size)
        expected = metadata.pop("checksum")
        checksum = begun_checksum(entries, metadata)
        for name in sorted(entries):
            file.seek(len(header) + entries[name].begin)
            left = entries[name].nbytes
            while left:
                piece = file.read(min(left, PIECE))
                if not piece:
                    raise ValueError("it ends too early")
                checksum.update(piece)
                left -= len(piece)
        if checksum.hexdigest() != expected:
            raise ValueError("its checksum is another")
    return header, metadata, entries


def _described_entries(header: dict[str, Any], size: int) -> Entries:
    entries = {
        name: Entry(np.dtype(DTYPES[x["dtype"]]), tuple(x["shape"]), x["data_offsets"][0])
        for name, x in header.items()
        if name != "__metadata__"
    }
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.nbytes)):
        if entry.begin != end or entry.nbytes < 0:
            raise ValueError("its tensors overlap, or leave gaps")
        end += entry.nbytes
    if end != size:
        raise ValueError(f"it has {size} bytes of data; expected {end}")
    return entries


def _fitting(
    path: FilePath, optimizer: ShardedAdamW, metadata: Mapping[str, str], entries: Entries
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The extra, and the numbers of the state, of a file that fits this optimizer."""
    try:
        extra: dict[str, Any] = json.loads(metadata["extra"])
        own = _entries(optimizer)
        layout = {name: tuple(optimizer.roles(i)) for i, name in enumerate(optimizer.names)}
        require_model(entries, params_of(optimizer), layout)
        for name, entry in own.items():
            found = entries[name]
            if (found.dtype, found.shape) != (entry.dtype, entry.shape):
                raise ValueError(
                    f"{name} has shape {found.shape} and dtype {found.dtype}; expected "
                    f"{entry.shape} and {entry.dtype}"
                )
        numbers = json.loads(metadata["optimizer"])
        state = {"seed": optimizer.seed, **restored(numbers, {}, optimizer)}  # older: without
        optimizer.check_numbers(state)
    except (KeyError, TypeError, ValueError) as error:
        raise MismatchedCheckpointError(f"{os.fspath(path)} does not fit: {error}") from error
    return extra, state


def _read_own(file: BinaryIO, start: int, optimizer: ShardedAdamW, entries: Entries) -> None:
    """Read what this rank owns, of the parameters and of the state."""
    arrays = params_of(optimizer)
    for i, name in enumerate(optimizer.names):
        array = arrays[name]
        own = [strip for rank, strip in optimizer.owners(i) if rank == optimizer.comm.rank]
        for role in ("params", *optimizer.roles(i)) if own else ():
            entry = entries[f"{role}/{name}"]
            targets = {
                _range(strip, role): lined_up(array, order_of(array))[strip.begin : strip.end]
                if role == "params"
                else optimizer.own_state(strip, role)
                for strip in own
            }
            _read_parts(file, start, entry, targets, _is_transposed(array, entry))


def _read_parts(
    file: BinaryIO, start: int, entry: Entry, targets: dict[tuple[int, int], Any], transposed: bool
) -> None:
    if transposed:
        file.seek(start + entry.begin)
        whole = np.fromfile(file, entry.dtype, prod(entry.shape)).reshape(entry.shape)
        elements = lined_up(whole, "F")
        for (begin, end), target in targets.items():
            target[:] = elements[begin:end]
        return
    for (begin, _), target in targets.items():
        file.seek(start + entry.begin + begin * entry.dtype.itemsize)
        view = memoryview(target).cast("B")
        if file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise OSError(f"{file.name} ends too early")
