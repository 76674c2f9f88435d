"""Keeps what libraries print while they load out of the output of a command."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

STANDARD_DESCRIPTORS = (1, 2)  # of output and error


@contextmanager
def suppress_output() -> Iterator[None]:
    """Discard standard output and error, including those of C code and child processes."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    copies = [os.dup(descriptor) for descriptor in STANDARD_DESCRIPTORS]
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        try:
            for descriptor in STANDARD_DESCRIPTORS:
                os.dup2(null.fileno(), descriptor)
            yield
        finally:
            _flush_c_streams()
            for descriptor, copy in zip(STANDARD_DESCRIPTORS, copies, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)


def _flush_c_streams() -> None:
    """Flush what C code has buffered; otherwise it would appear after the output is restored."""
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
