"""Checks that a file can be written, before the work whose result it is to contain."""

import os
from pathlib import Path

from .._io.atomic_write import temporary_path


def check_output_path(path: Path, replaced: bool = False) -> None:
    """Raise ValueError unless a file can be written to or, if `replaced`, replaced atomically.

    Existing files stay as they are, and no new one is left.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ValueError(f"{path}: folder {target.parent} does not exist; create it first")
    if replaced:
        target = temporary_path(target)
    try:
        if target.exists():
            target.open("ab").close()
        else:
            target.touch(exist_ok=False)
            target.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
