"""Checkpoints all of whose numbers are the same, and processes that are killed while they save."""

import ctypes
import os
import signal
import subprocess

import numpy as np
from checkpoints import contents

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, save_checkpoint

PR_SET_PTRACER, ANY_PROCESS = 0x59616D61, -1  # of linux/prctl.h


def marked(n):
    """An optimizer all of whose numbers are n; large enough for a save to take some time."""
    params = {"w": np.full((300, 200), n, np.float32), "b": np.full(7, n, np.float64)}
    optimizer = AdamW(params)
    state = optimizer.state_dict()
    for entry in state["state"].values():
        entry["step"] = n
        entry["m"][...] = entry["v"][...] = n
    optimizer.load_state_dict(state | {"t": n})
    return optimizer


def mark_in(path):
    """The n of a file, all of which has to agree."""
    optimizer = marked(0)
    n = load_checkpoint(path, optimizer)["n"]
    assert contents(optimizer) == contents(marked(n))
    return n


def save_marked(path, n):
    save_checkpoint(path, marked(n), extra={"n": n})


def start(work):
    """A child process."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def traced_save(path, n, log, *options):
    """Save in a child process under strace; return whether a signal ended it.

    ``options`` go to strace, which writes to ``log`` the calls from the beginning of the save to
    the end of the process. Raises PermissionError where it may not trace processes.
    """
    optimizer = marked(n)
    begin, may_begin = os.pipe()

    def save():
        os.close(may_begin)
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY_PROCESS)
        os.read(begin, 1)
        save_checkpoint(path, optimizer, extra={"n": n})
        os._exit(0)

    child = start(save)
    os.close(begin)
    command = ["strace", "-f", "-o", log, "-p", str(child), *options]
    try:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            attached = strace.stderr.readline()
            os.close(may_begin)
            strace.stderr.read()
    finally:
        if "attached" not in attached:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if "attached" not in attached:
        raise PermissionError(attached)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
