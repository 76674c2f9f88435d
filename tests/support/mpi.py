"""Programs under ``mpiexec``."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

MPIEXEC = shutil.which(
    "mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
OPEN_MPI = {  # which otherwise refuses containers, and more ranks than cores
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or find_spec("mpi4py") is None, reason="needs mpi4py and mpiexec"
)


def begin(ranks, program, *arguments):
    """Start a program on a number of ranks, which a test is going to stop."""
    command = [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, [program, *arguments])]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | OPEN_MPI
    )


def start(ranks, program, *arguments):
    """Run a program on a number of ranks; it is killed if it hangs."""
    command = [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, [program, *arguments])]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | OPEN_MPI
    )
