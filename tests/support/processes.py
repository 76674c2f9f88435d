"""Processes that tests start."""

import os
import subprocess
import sys


def run_python(code, **environment):
    """Run code in a process of its own, without the variables that choose kernels and threads."""
    keep = {k: v for k, v in os.environ.items() if k not in ("FUSED_ADAMW_ISA", "OMP_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=keep | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
