"""Processes that tests start."""

import os
import subprocess
import sys
from pathlib import Path


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
        timeout=120,
    )
