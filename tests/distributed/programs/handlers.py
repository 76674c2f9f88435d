"""Signal handlers that raise, on one rank or on all.  The first argument is a folder."""

import os
import random
import signal
import sys
import time
from pathlib import Path

from common import COMM, RANK, RANKS, SMALL_BUCKETS, draw, equal_gradients, run, same_bits
from mpi4py import MPI

from fused_adamw import AdamW
from fused_adamw.checkpoint import load_checkpoint, read_step, save_checkpoint
from fused_adamw.sharded import ShardedAdamW

PATH = Path(sys.argv.pop(1)) / "checkpoint"
SHAPES = [(70_000,), (40_000,), (7, 9)]
LAST = RANKS - 1


class AlarmError(Exception):
    pass


def raise_alarm(number, frame):
    raise AlarmError


def made():
    return ShardedAdamW(draw(SHAPES), bucket_bytes=SMALL_BUCKETS, ema_decay=0.5)


def steps_are_whole():
    """An alarm at random moments on one rank: it has taken a step, or has not begun it."""
    opt = made()
    params = draw(SHAPES)
    single = AdamW(params, ema_decay=0.5)
    alarms, steps, rng = 0, 150, random.Random(RANK)
    all_gradients = [equal_gradients(SHAPES, step % 7) for step in range(steps)]
    signal.signal(signal.SIGALRM, raise_alarm)
    duration = 1e-3
    for step in range(steps):
        start, latest = time.perf_counter(), 2 * duration
        while opt.t == step:
            try:
                if RANK == LAST:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, latest))
                opt.step(all_gradients[step])
                signal.setitimer(signal.ITIMER_REAL, 0)
            except AlarmError:
                alarms += 1
                latest *= 1.1  # a busy machine may be slower than that
        duration = min(duration, time.perf_counter() - start)
        assert opt.t == step + 1
        single.step(all_gradients[step])
    if RANK == LAST:
        assert alarms > steps / 10, alarms
    assert same_bits(params, opt.param_groups[0]["params"])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def the_documented_way_to_stop():
    """A flag that the loop reads: all ranks stop after the same step, and save."""
    for signaled in ([LAST], range(RANKS)):
        stop = []
        signal.signal(signal.SIGTERM, lambda *_, stop=stop: stop.append(True))
        opt = made()
        for step in range(10_000):
            opt.step(equal_gradients(SHAPES, step % 7))
            if step == 3 and RANK in signaled:
                os.kill(os.getpid(), signal.SIGTERM)
            if COMM.allreduce(bool(stop), MPI.LOR):
                save_checkpoint(PATH, opt)
                break
        assert COMM.allgather(opt.t) == [opt.t] * RANKS
        assert read_step(PATH) == opt.t < 10_000
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def loads_are_whole():
    """An alarm at random moments on one rank: all is of one snapshot."""
    opt = made()
    states = []
    for step in range(2):
        opt.step(equal_gradients(SHAPES, step))
        save_checkpoint(PATH.with_suffix(f".{step}"), opt)
        states.append([x.copy() for x in opt.param_groups[0]["params"]])
    rng = random.Random(5)
    signal.signal(signal.SIGALRM, raise_alarm)
    for attempt in range(30):
        path = PATH.with_suffix(f".{attempt % 2}")
        loaded, latest = False, 2e-2
        while not loaded:
            COMM.Barrier()
            try:
                if RANK == LAST:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, latest))
                load_checkpoint(path, opt)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except AlarmError:
                latest *= 1.1  # as above
            loaded = opt.t == attempt % 2 + 1
        assert same_bits(opt.param_groups[0]["params"], states[attempt % 2])
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


PROGRAMS = (
    steps_are_whole,
    the_documented_way_to_stop,
    loads_are_whole,
)
run({f.__name__: f for f in PROGRAMS})
