"""Checks of the files of a command, before the work whose result they are to contain."""

import errno
import os
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from .._io.atomic_write import permissions_to_keep, require_file_name, temporary_path
from .._io.files import real_path


def check_output_path(path: Path, replaced: bool = False) -> None:
    """Raise ValueError unless a file can be written to or, if `replaced`, replaced atomically.

    Existing files stay as they are, and no new one is left.
    """
    target = real_path(path)
    if target.parent.is_file():
        raise ValueError(f"{path} must be in a folder; got the file {target.parent}")
    if not target.parent.is_dir():
        raise ValueError(f"{path}: folder {target.parent} does not exist; create it first")
    try:
        require_file_name(os.fspath(path))
        if target.is_symlink():  # only of a loop of links is the real path a link
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        exists = target.exists()
        permissions_to_keep(target)  # raises where the file cannot be replaced
        if exists and not replaced:
            target.open("ab").close()
        else:
            created = temporary_path(target) if replaced else target
            created.touch(exist_ok=False)
            created.unlink(missing_ok=True)  # another save may have removed it
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def check_distinct(files: Mapping[str, Path | None]) -> None:
    """Raise ValueError where two options name one file, by whatever path or link."""
    named = [(option, path) for option, path in files.items() if path is not None]
    for (option, path), (other, other_path) in combinations(named, 2):
        if _is_same(path, other_path):
            raise ValueError(f"{option} and {other} must be different files; got {other_path}")


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)  # of hard links, too
    except OSError:  # one of them does not exist
        return os.path.normcase(real_path(path)) == os.path.normcase(real_path(other))
