"""The memory-bandwidth bound: a C loop with the loads and stores of a step."""

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from ..._core import BLOCK
from ..harness import Prepare, Step
from ..workloads import Array, Arrays
from .base import Implementation, num_threads

SOURCE = Path(__file__).with_suffix(".c")
C_TYPES = {"float32": ctypes.c_float, "float64": ctypes.c_double}


def compiler_command() -> list[str]:
    """The C compiler: that of the environment variable CC, or ``cc``."""
    return os.environ.get("CC", "cc").split()


@cache
def compile_library() -> ctypes.CDLL:
    """bandwidth_bound.c, compiled for this machine."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "bandwidth_bound.so")
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        command = [*compiler_command(), *flags, str(SOURCE), "-o", str(path)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(path))


def load_loop() -> Prepare:
    """The loop with the loads and stores of a step on float32 or float64."""
    library = compile_library()

    def prepare(*roles: Arrays) -> Step:
        calls = [_bind(library, *tensor) for tensor in zip(*roles, strict=True)]

        def step() -> None:
            for call in calls:
                call()

        return step

    return prepare


def _bind(library: ctypes.CDLL, *arrays: Array) -> Step:
    """The call of the loop for the four arrays of one tensor."""
    size, dtype = arrays[0].size, arrays[0].dtype.name
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
    loop = getattr(library, f"bandwidth_bound_{dtype}")
    return partial(loop, *pointers, ctypes.c_ssize_t(size), num_threads(), C_TYPES[dtype](0))


class Stream(NamedTuple):
    """An array that a step reads, or reads and writes; of any dtype.

    ``bytes_per_block``: those that belong to a block of BLOCK elements of the tensor.
    """

    array: Array
    bytes_per_block: int
    is_written: bool


class _Stream(ctypes.Structure):
    """``struct stream`` of bandwidth_bound.c."""

    _fields_ = (
        ("bytes", ctypes.c_void_p),
        ("nbytes", ctypes.c_ssize_t),
        ("bytes_per_block", ctypes.c_ssize_t),
        ("is_written", ctypes.c_int32),
    )


def bind_streams(size: int, streams: Sequence[Stream], threads: int) -> Step:
    """The call of the loop for the arrays of one tensor of ``size`` elements, which keep their
    values."""
    structs = [_Stream(s.array.ctypes.data, s.array.nbytes, *s[1:]) for s in streams]
    pointers = (_Stream * len(streams))(*structs)
    blocks, zero = ctypes.c_ssize_t(-(-size // BLOCK)), ctypes.c_ubyte(0)
    loop = compile_library().bandwidth_bound_streams
    return partial(loop, pointers, len(streams), blocks, threads, zero)


BANDWIDTH_BOUND = Implementation(
    "bandwidth-bound",
    load_loop,
    install_hint="install a C compiler with OpenMP",
    min_parameters=2**16,  # a smaller step is bound by the call
)
