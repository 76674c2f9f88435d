"""Advisory locks on files. The kernel releases them when a process ends, however it ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":

    def try_lock(descriptor: int) -> bool:
        """Nothing is locked on Windows: True."""
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Lock an open file; False if it is locked already.

        flock(2) belongs to the open file: closing the same file elsewhere in the process does not
        release it. Where a file system has no locks nothing is locked, and the answer is True.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


@contextmanager
def locked_file(path: Path) -> Iterator[bool]:
    """Lock a file that exists as long as the block; yield whether the lock was free.

    A killed process leaves the file, but not the lock. Raises OSError where it cannot be created.
    """
    if sys.platform == "win32":  # where open files cannot be removed
        yield True
        return
    while True:
        descriptor = _open(path, os.O_CREAT)
        try:
            if not try_lock(descriptor):
                yield False
                return
            if _is_at(descriptor, path):
                try:
                    yield True
                finally:
                    path.unlink(missing_ok=True)  # while it is locked
                return
        finally:
            os.close(descriptor)


def remove_unlocked(path: Path) -> None:
    """Remove a file unless a process has locked it. Raises OSError where that is impossible."""
    if sys.platform == "win32":
        path.unlink()
        return
    descriptor = _open(path)
    try:
        if try_lock(descriptor):
            path.unlink()
    finally:
        os.close(descriptor)


def _open(path: Path, flags: int = 0) -> int:
    """Open to lock: to write if possible, as NFS requires it for a lock."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        return os.open(path, os.O_RDWR | flags, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags, 0o666)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at ``path``: whoever had locked it may have removed
    it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
