"""Processes that tests start."""

import os
import subprocess
import sys
from pathlib import Path


def bytes_read(call):
    """By system calls of this process, on Linux."""

    def total():
        with open("/proc/self/io") as file:
            return int(file.readline().split()[1])

    before, between = total(), total()
    call()
    return total() - between - (between - before)


def start_children(function, arguments):
    """Fork a process for each argument; call the result to wait for them and have their statuses,
    which are 0 where the function has returned."""
    children = []
    for argument in arguments:
        if not (child := os.fork()):
            status = 1
            try:
                function(argument)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return lambda: [os.waitpid(child, 0)[1] for child in children]


def run_python(code, paths=(), **environment):
    """Run code in a process of its own, without the variables that choose kernels and threads.
    ``paths``: folders of tests whose modules it may import."""
    keep = {k: v for k, v in os.environ.items() if k not in ("FUSED_ADAMW_ISA", "OMP_NUM_THREADS")}
    if paths:
        folders = [str(Path(__file__).parents[1] / path) for path in paths]
        keep["PYTHONPATH"] = os.pathsep.join([*folders, keep.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=keep | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def has_openmp(compiler):
    """Clang's OpenMP is in a package of its own."""
    command = [compiler, "-fopenmp", "-fsyntax-only", "-x", "c", "-"]
    return not subprocess.run(command, input=b"#include <omp.h>", capture_output=True).returncode
