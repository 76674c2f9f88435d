"""Output through a pipe: what the other process has yet to read can be lost at an abort."""

import sys
from contextlib import suppress
from stat import S_ISFIFO
from struct import unpack
from time import monotonic, sleep
from typing import TextIO

if sys.platform != "win32":
    import fcntl
    import os
    from termios import FIONREAD

    def _unread_bytes(descriptor: int) -> int:
        """Return how much of a pipe has not been read; 0 for any other file."""
        if not S_ISFIFO(os.fstat(descriptor).st_mode):
            return 0
        return int(unpack("i", fcntl.ioctl(descriptor, FIONREAD, bytes(4)))[0])

else:

    def _unread_bytes(descriptor: int) -> int:
        return 0


def flush_until_read(stream: TextIO, seconds: float) -> None:
    """Write what a stream holds back and, where it is a pipe, wait until all of it has been read.

    Args:
        seconds: the longest wait: the other process may have stopped reading.
    """
    deadline = monotonic() + seconds
    with suppress(OSError, ValueError):  # closed, or without a descriptor
        stream.flush()
        while _unread_bytes(stream.fileno()) and monotonic() < deadline:
            sleep(0.001)
