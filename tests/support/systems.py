"""Marks of tests that only some operating systems can run."""

import os
import sys
import tempfile
from pathlib import Path

import pytest


def _can_make_links() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "link")
        try:
            link.symlink_to("file")
        except OSError:  # Windows lets few users make them
            return False
        return link.is_symlink()


needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
needs_links = pytest.mark.skipif(not _can_make_links(), reason="needs symbolic links")
needs_locks = pytest.mark.skipif(os.name == "nt", reason="nothing is locked on Windows")
needs_modes = pytest.mark.skipif(os.name == "nt", reason="needs the modes of POSIX")
needs_terminals = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs terminals")
