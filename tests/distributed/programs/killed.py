"""A training run with checkpoints, in which a rank may die in the middle of a step.

    killed.py FILE STEPS [SIGKILL | exception] [STEP]

It resumes from the file if there is one. With the third argument the last rank dies in the step
after so many.
"""

import os
import signal
import sys
from pathlib import Path

from common import RANK, RANKS, SMALL_BUCKETS, draw, equal_gradients

from fused_adamw.checkpoint import load_checkpoint, save_checkpoint
from fused_adamw.sharded import ShardedAdamW

SHAPES = [(100_000,), (5,)]
path, steps = Path(sys.argv[1]), int(sys.argv[2])
how, last = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else (None, None)


opt = ShardedAdamW(draw(SHAPES), bucket_bytes=SMALL_BUCKETS, state_dtype="8bit")
start_gather = opt._bucket_comm.start_gather


def die_in_the_last_step(k, bucket, arrays):
    if RANK == RANKS - 1 and opt.t == last:
        if how == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("in the middle of a step")
    start_gather(k, bucket, arrays)


if path.exists():
    load_checkpoint(path, opt)
opt._bucket_comm.start_gather = die_in_the_last_step
while opt.t < steps:
    opt.step(equal_gradients(SHAPES, opt.t))
    if opt.t % 2 == 0:
        save_checkpoint(path, opt)
print(f"rank {RANK}: {opt.t} steps")
