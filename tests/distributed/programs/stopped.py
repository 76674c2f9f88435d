"""A job scheduler's SIGTERM to all ranks, by handlers that raise; then each rank saves.

stopped.py FILE SEED
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
from common import COMM, RANK, SMALL_BUCKETS, draw

from fused_adamw.checkpoint import read_step, save_checkpoint
from fused_adamw.sharded import ShardedAdamW

path, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(1000 * seed + RANK)


class TerminatedError(Exception):
    pass


def raise_terminated(number, frame):
    raise TerminatedError


def terminate(number, frame):
    os.kill(os.getpid(), signal.SIGTERM)


signal.signal(signal.SIGTERM, raise_terminated)
signal.signal(signal.SIGALRM, terminate)
opt = ShardedAdamW(draw([(70_000,), (7, 9)]), bucket_bytes=SMALL_BUCKETS)
grads = [np.ones_like(p) for p in opt._arrays]
COMM.Barrier()
try:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05 + 0.01 * rng.random())
        while True:
            time.sleep(rng.random() * 3e-3)  # the forward and backward passes
            opt.step(grads)
    except TerminatedError:
        save_checkpoint(path, opt)
except ValueError as error:
    # mpiexec may lose what is printed; and a rank that has ended makes it kill the others, at
    # whatever they are writing.
    own = Path(path).with_suffix(f".{RANK}")
    own.write_text(str(error))
    own.replace(Path(path).with_suffix(".refused"))
    raise
assert COMM.allgather(opt.t) == [read_step(path)] * COMM.size
print("saved", flush=True)
