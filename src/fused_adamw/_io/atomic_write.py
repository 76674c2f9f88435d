"""Atomic replacement of a file: after a crash at any moment, the old or the new one, complete."""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOTSUP
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(target: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``target`` when the block ends without an error.

    The data is written to ``.NAME.*.tmp`` in the same folder, flushed to disk, and renamed; then
    the folder is flushed. An existing file passes on its permissions. Temporary files that a killed
    process left are removed first, so only one process may write to a target at a time.

    Raises OSError, also where ``target`` exists and is not a regular file.
    """
    permissions = _permissions(target)
    _remove_leftovers(target)
    temporary = temporary_path(target)
    try:
        with open(temporary, "xb") as file:
            if permissions is not None:
                os.chmod(temporary, permissions)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _flush_folder(target.parent)


def temporary_path(target: Path) -> Path:
    """A name for the temporary file, in the folder of ``target``."""
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")


def _permissions(target: Path) -> int | None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        # Renaming onto a device or a pipe would remove it.
        raise OSError(EINVAL, "not a regular file", str(target))
    return stat.S_IMODE(mode)


def _remove_leftovers(target: Path) -> None:
    leftover = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.tmp")
    with suppress(OSError):  # a folder that cannot be listed may still be writable
        for file in target.parent.iterdir():
            if leftover.fullmatch(file.name):
                file.unlink()


def _flush_folder(folder: Path) -> None:
    """Make a renaming durable: without this, a power failure may bring the old file back."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):  # file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)
