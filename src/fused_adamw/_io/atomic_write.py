"""Atomic replacement of a file: after a crash at any moment, the old or the new one, complete."""

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EACCES, EINVAL, EISDIR, ENOENT, ENOSYS, ENOTSUP, EPERM
from pathlib import Path
from typing import BinaryIO

from .file_lock import remove_unlocked, try_lock
from .files import hidden_sibling, real_path, require_regular

REFUSED = (EACCES, EPERM, EINVAL, ENOSYS, ENOTSUP)  # by file systems without permissions
_PERMISSIONS = stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO  # not setuid: the owner may change
RENAMES_OPEN_FILES = HAS_PERMISSIONS = os.name != "nt"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces the one at ``path`` when the block ends without an error.

    The data is written to ``.NAME.*.tmp`` in the folder of the file, to which links are followed,
    flushed to disk, and renamed; then the folder is flushed, if it may be opened. An existing file
    passes on its permissions, where the system and the file system have any. Of several processes
    that write to one path each writes a file of its own, and the last to rename it wins. Temporary
    files that killed processes left are removed first: those that no process has locked.

    Raises:
        OSError: also where a file exists and is not a regular one or, on Windows, is read-only, or
            where the path is that of a folder, such as one that ends in a separator. It names
            ``path``, not the temporary file.
    """
    text = os.fspath(path)
    target = real_path(text)
    try:
        require_file_name(text)
        with _replacement(target) as file:
            yield file
    except OSError as error:
        if not _is_of_file(error, target):
            raise
        raise OSError(error.errno, error.strerror, text) from error


def require_file_name(text: str) -> None:
    """Raise OSError for a path that cannot be opened, although what ``real_path`` returns for it
    can: an empty one, or "missing/../file"."""
    if not text:
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT))
    folder, name = os.path.split(text)
    if folder:
        try:
            os.stat(folder)
        except OSError as error:
            raise OSError(error.errno, error.strerror) from error
    if name in ("", os.curdir, os.pardir):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR))


def _is_of_file(error: OSError, target: Path) -> bool:
    """Whether an error is one of this file, and not of a different one that the block uses. What is
    raised by writing to an open file names none."""
    if error.errno is None:
        return False
    if not isinstance(error.filename, str | bytes):
        return True
    path = Path(os.fsdecode(error.filename))
    return path in (target, target.parent) or path.name.startswith(hidden_sibling(target, "").name)


@contextmanager
def _replacement(target: Path) -> Iterator[BinaryIO]:
    mode = permissions_to_keep(target)
    _remove_leftovers(target)
    temporary = temporary_path(target)
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open(temporary, "xb"))
            while not _lock_new(file, temporary):
                temporary = temporary_path(target)
                file = stack.enter_context(open(temporary, "xb"))
            if mode is not None:
                _set_mode(temporary, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if RENAMES_OPEN_FILES:  # while it is locked
                os.replace(temporary, target)
        if not RENAMES_OPEN_FILES:
            os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _flush_folder(target.parent)


def temporary_path(target: Path) -> Path:
    """A name for the temporary file, in the folder of ``target``."""
    return hidden_sibling(target, f"{secrets.token_hex(8)}.tmp")


def _lock_new(file: BinaryIO, path: Path) -> bool:
    """Lock a file that was just created; False if another process took it for a leftover."""
    return try_lock(file.fileno()) and path.exists()


def permissions_to_keep(target: Path) -> int | None:
    """The mode of a file that is to be replaced; None where there is no file, or no permissions.

    Raises OSError where it cannot be replaced: it is not a regular file or, on Windows, read-only.
    """
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    require_regular(mode, str(target))
    if HAS_PERMISSIONS:
        return mode & _PERMISSIONS
    if not mode & stat.S_IWRITE:
        raise PermissionError(EACCES, os.strerror(EACCES), str(target))
    return None


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        try:
            os.chmod(path, mode)
        except OSError as error:
            if error.errno not in REFUSED:
                raise


def _remove_leftovers(target: Path) -> None:
    leftover = re.compile(re.escape(hidden_sibling(target, "").name) + r"[0-9a-f]{16}\.tmp")
    with suppress(OSError):  # a folder that cannot be listed may still be writable
        for file in target.parent.iterdir():
            if leftover.fullmatch(file.name):
                with suppress(OSError):
                    remove_unlocked(file)


def _flush_folder(folder: Path) -> None:
    """Make a renaming durable: without this, a power failure may bring the old file back."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it may be written to, but not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):  # file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)
