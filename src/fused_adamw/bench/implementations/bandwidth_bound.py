"""The memory-bandwidth bound: a C loop with the loads and stores of a step."""

import ctypes
import os
import shlex
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path

from ..harness import Prepare, Step
from ..workloads import Array, Arrays
from .base import Implementation, num_threads

SOURCE = Path(__file__).with_suffix(".c")
C_TYPES = {"float32": ctypes.c_float, "float64": ctypes.c_double}


def compiler_command() -> list[str]:
    """The C compiler and its options: those of the environment variable CC, or ``cc``."""
    return shlex.split(os.environ.get("CC", ""), posix=os.name == "posix") or ["cc"]


def compile_library(source: str) -> ctypes.CDLL:
    """A library of this C source, for this machine; compiled once by each compiler."""
    return _compile_library(source, *compiler_command())


@cache
def _compile_library(source: str, *compiler: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "bandwidth_bound.so")
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-x", "c", "-"]
        command = [*compiler, *flags, "-o", str(path)]
        subprocess.run(command, check=True, input=source, text=True)
        return ctypes.CDLL(str(path))


def load_loop() -> Prepare:
    """Compiles bandwidth_bound.c for this machine."""
    library = compile_library(SOURCE.read_text())

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


BANDWIDTH_BOUND = Implementation(
    "bandwidth-bound",
    load_loop,
    install_hint="install a C compiler with OpenMP",
    min_parameters=2**16,  # a smaller step is bound by the call
)
