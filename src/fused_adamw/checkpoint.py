"""Checkpoints: parameters and optimizer in one safetensors file, written completely or not at all.

Saving and loading stream: beyond the state itself they take a few MiB, whatever the size of the
file. A file does not depend on the number of processes that wrote it. docs/checkpoint-format.md
describes the format.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ._io.checkpoint_load import load
from ._io.checkpoint_save import save
from ._io.checkpoint_schema import (
    CheckpointError,
    CorruptCheckpointError,
    Header,
    MismatchedCheckpointError,
    NewerCheckpointError,
    read_checkpoint_header,
    require_checksum,
    start_checksum,
    translate_read_errors,
)
from ._io.files import FilePath, open_regular, path_text
from ._io.json_values import read_metadata, read_step_count
from ._io.safetensors_stream import read_bytes, swap_order
from ._optim.arrays import Array
from ._optim.base import BaseOptimizer

if TYPE_CHECKING:
    from .optimizer import AdamW
    from .sharded import ShardedAdamW  # which needs mpi4py

__all__ = [
    "CheckpointError",
    "CorruptCheckpointError",
    "MismatchedCheckpointError",
    "NewerCheckpointError",
    "load_checkpoint",
    "read_arrays",
    "read_extra",
    "read_step",
    "save_checkpoint",
]


def save_checkpoint(
    path: FilePath,
    optimizer: "AdamW | ShardedAdamW",
    *,
    extra: Mapping[str, Any] | None = None,
    arrays: Mapping[str, Array] | None = None,
) -> None:
    """Write the parameters and the state of an optimizer to a file.

    The file is replaced atomically: the new one is written to the same folder, flushed to disk and
    renamed. A process that is killed at any moment leaves the old file or the new one, complete;
    an error, such as a full disk, leaves the old one. Temporary files of killed processes
    (``.FILE.*.tmp``) are removed by the next save to ``path``. Where several processes save to one
    path, each writes a complete file, and the last to finish wins.

    With ``ShardedAdamW`` all ranks have to call this. Rank 0 writes what the others send, so that
    only rank 0 needs access to the file, and only its ``path``, ``extra`` and ``arrays`` are used.
    With ``ShardedAdamW``, signal handlers of Python are deferred until the file is complete; a save
    of an ``AdamW`` can be interrupted.

    With ``AdamW``, this and what other threads do with the optimizer wait for one another, so that
    the file is of one step; a step waits until the file is complete, as the state is not copied
    first. Even if a thread writes to the parameters themselves meanwhile, the file can be loaded.

    Args:
        path: the file, a str, bytes or PathLike. A symbolic link is followed. An existing file
            keeps its permissions.
        optimizer: an ``AdamW`` or a ``ShardedAdamW``. Of a schedule only the repr is saved, for
            information; ``decay_mask`` and ``num_threads`` are not saved.
        extra: anything else that belongs to this step, such as the position in the data and the
            state of a random number generator: a mapping that ``json`` can write, nested at most
            100 deep. Keys are returned as strings, tuples as lists.
        arrays: more arrays of booleans, integers or floats, by name, such as the losses so far. In
            the file they are tensors ``extra/NAME``.

    Raises:
        TypeError: ``optimizer`` is neither an ``AdamW`` nor a ``ShardedAdamW``.
        TypeError, ValueError: ``extra``, ``arrays`` or a name cannot be written, a step would
            refuse an option or hyper-parameter, or a parameter was replaced. The file stays as it
            was.
        RuntimeError: called by code that an operation of the optimizer runs.
        OSError: the file cannot be written.

    With ``ShardedAdamW`` every rank raises the same. Memory: at most 5 MiB beyond the state.
    """
    save(path, _checked(optimizer), extra, arrays)


def load_checkpoint(
    path: FilePath, optimizer: "AdamW | ShardedAdamW", *, convert: bool = True
) -> dict[str, Any]:
    """Restore the parameters and the state of an optimizer from a file, in place.

    Parameters, state, step counts, hyper-parameters and options become those of the file, but for
    ``state_dtype``, ``master_weights``, ``decay_mask`` and ``num_threads``, which stay, and
    ``amsgrad``, which must be the same. Whether there is an average (``ema_decay``) stays, too. A
    schedule stays the optimizer's own; the file has to have been saved with one too. The file is
    verified as a whole before anything is changed. Signal handlers of Python are deferred while
    parameters and state are written.

    With ``ShardedAdamW`` all ranks have to call this, and to reach the file, or copies of it. Rank
    0 verifies it, and a rank that has a copy verifies that. Each reads the shards that are its own.

    Args:
        path: a file that ``save_checkpoint`` wrote, with any number of ranks.
        optimizer: an ``AdamW`` or a ``ShardedAdamW`` over parameters of the same names, shapes and
            dtypes. Their memory order may differ, unless their state is stored flat: parameters of
            16 bits, and any with a ``state_dtype``.
        convert: convert from one ``state_dtype`` or memory order to another, rounding to nearest,
            with one UserWarning (on rank 0) that names the formats. Master weights and averages
            that the file lacks are initialized from its parameters. False refuses such a file. To
            a ``state_dtype`` with scales ("8bit") in another memory order, a file is slow to
            convert: each 65,536 elements of a tensor may take a read of all of it.

    Returns:
        The ``extra`` that was saved; {} without one.

    Raises:
        TypeError: ``optimizer`` is not an ``AdamW`` or a ``ShardedAdamW``.
        CorruptCheckpointError, MismatchedCheckpointError, NewerCheckpointError: each is a
            CheckpointError and so a ValueError. Nothing is changed.
        ValueError: a parameter of the optimizer was replaced. Nothing is changed.
        RuntimeError: called by code that an operation of the optimizer runs.
        OSError: the file cannot be read. Nothing is changed, unless it was verified and then cannot
            be read again, as the message says.

    With ``ShardedAdamW`` every rank raises the same. Memory: at most 5 MiB beyond the state;
    MemoryError, with nothing changed, if 7 MiB cannot be allocated.
    """
    return load(path, _checked(optimizer), convert)


def read_extra(path: FilePath) -> dict[str, Any]:
    """Return the ``extra`` that a file was saved with; {} without one.

    Reads and verifies the header only.

    Args:
        path: a file that ``save_checkpoint`` wrote.

    Raises:
        CorruptCheckpointError, NewerCheckpointError: each is a CheckpointError and so a ValueError.
        OSError: the file cannot be read.
    """
    with _opened(path) as (_, header):
        return read_metadata(header.metadata, "extra")


def read_step(path: FilePath) -> int:
    """Return the number of steps that the optimizer of a file had taken, its ``t``.

    Arguments and errors are those of ``read_extra``. Reads and verifies the header only.
    """
    with _opened(path) as (_, header):
        return read_step_count(header.metadata)


def read_arrays(path: FilePath) -> dict[str, Array]:
    """Return the ``arrays`` that a file was saved with, as new arrays by name; {} without any.

    Arguments and errors are those of ``read_extra``. Reads and verifies the header and these arrays
    only.
    """
    found = {}
    with _opened(path) as (file, header):
        for key in sorted(key for key in header.tensors if key.startswith("extra/")):
            info = header.tensors[key]
            array = np.empty(info.shape, info.storage)
            data = array.reshape(-1)
            as_bytes = data.view(np.uint8).data
            read_bytes(file, header.position(key), as_bytes)
            require_checksum(header, key, start_checksum(as_bytes))
            swap_order(data)
            found[key.removeprefix("extra/")] = array
    return found


@contextmanager
def _opened(path: FilePath) -> Iterator[tuple[FileIO, Header]]:
    name = path_text(path)
    with open_regular(name) as file, translate_read_errors(name):
        yield file, read_checkpoint_header(name, file)


def _checked(optimizer: object) -> BaseOptimizer:
    if isinstance(optimizer, BaseOptimizer):
        return optimizer
    kind = type(optimizer)
    message = (
        "optimizer must be a fused_adamw.AdamW or a ShardedAdamW; got "
        f"{kind.__module__}.{kind.__qualname__}"
    )
    if any(base.__module__.split(".")[0] == "torch" for base in kind.__mro__):
        message += "; for PyTorch use torch.save(optimizer.state_dict(), path)"
    raise TypeError(message)
