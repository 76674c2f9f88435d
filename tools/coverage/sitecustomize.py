"""On PYTHONPATH while coverage is measured: a process that ends by os._exit, as forked children do,
skips the handlers that write the counts of C code."""

import ctypes
import os
import resource
import sys
from typing import NoReturn

exit_at_once = os._exit


def write_counts_and_exit(status: int) -> NoReturn:
    # A test may have limited the size of files: half a file of counts makes all later ones useless.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    core = sys.modules.get("fused_adamw._core")
    if core is not None:
        ctypes.CDLL(core.__file__).fused_adamw_write_counts()
    exit_at_once(status)


os._exit = write_counts_and_exit
