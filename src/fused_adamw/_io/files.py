"""Paths as callers give them, and regular files to read."""

import errno
import os
import stat
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import TypeAlias

FilePath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_PREFIX_BYTES = 64  # of a long name
_MAX_SHOWN = 1000  # characters of a text in a message


def path_text(path: FilePath) -> str:
    """A path as text, whatever kind of path it is. Raises TypeError for anything else, and
    ValueError for what no system takes."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"path must be a str, bytes or PathLike; got {type(path).__name__}"
        ) from None
    if "\0" in text:
        raise ValueError(f"path must not contain a null character; got {text!r}")
    return text


def real_path(path: str | Path) -> Path:
    """Where a path leads, through all links. Raises OSError, which names it, for a relative one
    where the current folder has been removed."""
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def printable(text: str) -> str:
    """Text with control characters and the like escaped, so that a terminal shows it on one line.

    Names of files and tensors may contain anything, escape sequences of terminals too, and those of
    tensors may be long.
    """
    if len(text) > _MAX_SHOWN:
        text = f"{text[:_MAX_SHOWN]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def require_regular(mode: int, path: str) -> None:
    """Raise OSError unless a file has the mode of a regular one.

    Pipes would be waited for, devices may never end, and renaming onto either removes it.
    """
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, "not a regular file", path)


def open_regular(path: str) -> FileIO:
    """Open a file to read, unbuffered. Raises OSError at once where it is not a regular file."""
    require_regular(os.stat(path).st_mode, path)  # opening some devices has effects
    return FileIO(path, opener=_open_checked)


def _open_checked(path: str, flags: int) -> int:
    """Open without waiting for the writer of a pipe, and check what was opened."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        require_regular(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def hidden_sibling(target: Path, suffix: str) -> Path:
    """A hidden file beside ``target``, named after it: ``.NAME.SUFFIX``.

    Names have at most 255 bytes, on some file systems fewer: of a long NAME the hidden file has a
    prefix and a hash.
    """
    stem, encoded = target.name, os.fsencode(target.name)
    if len(encoded) > 2 * _PREFIX_BYTES:
        digest = blake2b(encoded, digest_size=8).hexdigest()
        stem = f"{encoded[:_PREFIX_BYTES].decode('utf-8', 'ignore')}-{digest}"
    return target.with_name(f".{stem}.{suffix}")
