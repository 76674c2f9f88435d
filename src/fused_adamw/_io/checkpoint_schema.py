"""The parts of a checkpoint: tensors, metadata and checksums.

docs/checkpoint-format.md describes the format for whoever has only a file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from io import FileIO
from typing import Any, NamedTuple

import numpy as np

from .._core import shown
from .._optim.arrays import Array
from .._optim.base import BaseOptimizer
from .._optim.options import SCHEDULED
from .files import printable
from .json_values import encode_extra, read_metadata, require_json_types
from .safetensors_stream import (
    TAGS,
    TensorInfo,
    parse_tensors,
    read_header,
    read_pieces,
)

FORMAT = "fused-adamw checkpoint"
VERSION = 1
PLACEHOLDER = "0" * 64  # has the length of a checksum


class CheckpointError(ValueError):
    """A file was rejected; parameters and optimizer are as they were."""


class CorruptCheckpointError(CheckpointError):
    """The file is corrupt, or not a checkpoint."""


class MismatchedCheckpointError(CheckpointError):
    """The file belongs to a different model, or to an optimizer with different options."""


class NewerCheckpointError(CheckpointError):
    """The file has a version of the format that this release cannot read."""


class Header(NamedTuple):
    """The verified header of a checkpoint."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    checksums: dict[str, str]  # of the tensors
    data_start: int  # byte of the file

    def position(self, name: str) -> int:
        """The byte of the file that a tensor begins at."""
        return self.data_start + self.tensors[name].begin


# ---------------------------------------------------------------------------- tensors


def optimizer_tensors(optimizer: BaseOptimizer) -> dict[str, TensorInfo]:
    """The tensors of parameters and state, by their names in a file."""
    tensors = {}
    for name, array in zip(optimizer.names, optimizer._arrays, strict=True):
        tensors[f"params/{name}"] = TensorInfo(array.dtype.name, array.shape)
        for role, (dtype, shape) in optimizer._state_entries(array).items():
            tensors[f"{role}/{name}"] = TensorInfo(dtype, shape)
    return tensors


_EXTRA_DTYPES = ", ".join(name for name in TAGS if hasattr(np, name))


def _is_storable(dtype: np.dtype[Any]) -> bool:
    """Whether files can contain a dtype of a caller's array: not those that ml_dtypes adds."""
    is_own = issubclass(dtype.type, (np.bool_, np.integer, np.floating))
    return is_own and dtype.isnative and dtype.name in TAGS


def extra_arrays(arrays: Mapping[str, Array] | None) -> dict[str, Array]:
    """The arrays of a caller, by their names in a file."""
    if arrays is None:
        return {}
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays must be a mapping of names to arrays; got {_type(arrays)}")
    found = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"arrays must have strings as keys; got {shown(name)}")
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"arrays[{name!r}] must be an array of numbers; {error}") from None
        dtype = array.dtype
        if not _is_storable(dtype) or isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"arrays[{name!r}] must be an array of {_EXTRA_DTYPES} in native byte order; got "
                f"{_type(value)} of {dtype}"
            )
        found[f"extra/{name}"] = array
    return found


# ---------------------------------------------------------------------------- metadata


def build_metadata(numbers: Mapping[str, Any], extra: Mapping[str, Any] | None) -> dict[str, str]:
    """The metadata without checksums. ``numbers``: of ``BaseOptimizer._state_numbers``."""
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "optimizer": json.dumps(_describe(numbers)),
        "extra": encode_extra(extra),
    }


def _describe(numbers: Mapping[str, Any]) -> dict[str, Any]:
    groups = [
        {
            name: {"schedule": repr(value)} if callable(value) else value
            for name, value in group.items()
        }
        for group in numbers["param_groups"]
    ]
    state = numbers["state"]
    steps = {name: entry["step"] for name, entry in state.items()}
    orders = {name: entry["order"] for name, entry in state.items() if "order" in entry}
    options = {name: x for name, x in numbers.items() if name not in ("state", "param_groups")}
    return options | {"param_groups": groups, "steps": steps, "orders": orders}


def restore_numbers(metadata: Mapping[str, str], optimizer: BaseOptimizer) -> dict[str, Any]:
    """The numbers that ``build_metadata`` was given, with the schedules of ``optimizer``.

    Raises KeyError, TypeError or ValueError where they do not match it.
    """
    saved = read_metadata(metadata, "optimizer")
    require_json_types(saved)
    groups, own = saved.pop("param_groups"), optimizer.param_groups
    if len(groups) != len(own):
        raise ValueError(f"param_groups must have length {len(own)}; got {len(groups)}")
    for g, group in enumerate(groups):
        group["betas"] = tuple(group["betas"])
        group |= {name: _restored(g, name, group[name], own[g][name]) for name in SCHEDULED}
    state = {name: {"step": step} for name, step in saved.pop("steps").items()}
    for name, order in saved.pop("orders").items():
        state[name]["order"] = order
    return {**saved, "param_groups": groups, "state": state}


def _restored(g: int, name: str, saved: Any, own: Any) -> Any:
    """The saved number of a group; where it was a schedule, the one that the optimizer has."""
    scheduled = isinstance(saved, dict)
    if scheduled != callable(own):
        kinds = [f"a constant {name}", f"a schedule of {name}"]
        raise ValueError(
            f"group {g}: the checkpoint has {kinds[scheduled]} "
            f"({saved['schedule'] if scheduled else saved}), this optimizer has "
            f"{kinds[not scheduled]} ({shown(own)})"
        )
    return own if scheduled else saved


def _type(value: object) -> str:
    return type(value).__name__


# ---------------------------------------------------------------------------- checksums


def seal(
    metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo], checksums: Mapping[str, str]
) -> dict[str, str]:
    """The metadata with the checksums of the tensors, and the checksum of the header."""
    complete = {**metadata, "tensor_checksums": json.dumps(checksums)}
    return {**complete, "checksum": _header_checksum(complete, tensors)}


def _header_checksum(metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> str:
    """Of all that a header means, whatever order it is in."""
    layout = [[name, TAGS[tensors[name].dtype], tensors[name].shape] for name in sorted(tensors)]
    return start_checksum(json.dumps([sorted(metadata.items()), layout]).encode()).hexdigest()


def start_checksum(data: bytes | memoryview = b"") -> blake2b:
    """BLAKE2b with 32 bytes of output."""
    return blake2b(data, digest_size=32)


# ---------------------------------------------------------------------------- reading


# What reading anything but a checkpoint may raise.
UNREADABLE = (
    *(LookupError, TypeError, ValueError, AttributeError),
    *(RecursionError, OverflowError, EOFError),
)


@contextmanager
def translate_read_errors(path: str) -> Iterator[None]:
    """Raise CorruptCheckpointError where a file cannot be understood, and OSError, naming it, where
    it cannot be read: what is raised by reading from an open file names none."""
    try:
        yield
    except NewerCheckpointError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    except UNREADABLE as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise CorruptCheckpointError(
            f"{printable(path)} is corrupt or not a fused-adamw checkpoint ({printable(reason)})"
        ) from error


def read_checkpoint_header(path: str, file: FileIO) -> Header:
    """Read and verify the header, and nothing else.

    Raises NewerCheckpointError, or an error that ``translate_read_errors`` translates.
    """
    raw = read_header(file)
    metadata = raw.content["__metadata__"]
    if metadata["format"] != FORMAT:
        raise ValueError(f"its format is {metadata['format']!r}")
    if not re.fullmatch("[1-9][0-9]*", metadata["version"]):
        raise ValueError(f"its version is {metadata['version']!r}")
    # Checked first: nothing else of a newer file can be relied on.
    if int(metadata["version"]) > VERSION:
        raise NewerCheckpointError(
            f"{printable(path)} has version {metadata['version']} of the format; this release of "
            f"fused-adamw reads versions up to {VERSION}: upgrade it"
        )
    tensors = parse_tensors(raw)
    covered = {name: value for name, value in metadata.items() if name != "checksum"}
    if metadata["checksum"] != _header_checksum(covered, tensors):
        raise ValueError("checksum mismatch in the header")
    checksums = json.loads(metadata["tensor_checksums"])
    return Header(metadata, tensors, checksums, raw.data_start)


def verify_tensors(file: FileIO, header: Header) -> None:
    """Read all tensors to compare their checksums. Raises ValueError naming one that differs."""
    for name, tensor in header.tensors.items():
        checksum = start_checksum()
        for piece in read_pieces(file, header.position(name), tensor.nbytes):
            checksum.update(piece)
        require_checksum(header, name, checksum)


def require_checksum(header: Header, name: str, found: blake2b) -> None:
    """Raise ValueError unless this is the checksum of a tensor."""
    if found.hexdigest() != header.checksums[name]:
        raise ValueError(f"checksum mismatch in tensor {name}")
