"""Libraries that print while they load must not print into the output of a command."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

STREAMS = (1, 2)  # file descriptors of standard output and error


@contextmanager
def silence() -> Iterator[None]:
    """Nothing reaches standard output or error, from C code and child processes either."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(stream) for stream in STREAMS]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            for stream in STREAMS:
                os.dup2(nowhere.fileno(), stream)
            yield
        finally:
            flush_c()
            for stream, copy in zip(STREAMS, kept, strict=True):
                os.dup2(copy, stream)
                os.close(copy)


def flush_c() -> None:
    """What C code printed waits in a buffer, and would come out later."""
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
