"""What the programs under ``mpiexec`` share."""

import sys
import time
from functools import lru_cache

import numpy as np
from mpi4py import MPI

from fused_adamw._distributed.mpi import abort_on_exception

COMM = MPI.COMM_WORLD
RANK, RANKS = COMM.rank, COMM.size
SMALL_BUCKETS = 1 << 17  # bytes: collectives of two chunks of float32, or one of float64

abort_on_exception(COMM)


def wait_for_all():
    """A barrier that leaves the cores to ranks that still work: there may be more ranks than cores,
    and MPI waits without sleeping."""
    request = COMM.Ibarrier()
    while not request.Test():
        time.sleep(0.001)


def draw(shapes, dtype=np.float32, seed=0):
    return [np.array(x, dtype) for x in _normal(tuple(shapes), seed)]


@lru_cache(8)
def _normal(shapes, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def local_gradients(shapes, dtypes, step, scale=2.0**-20):
    """Of each rank: multiples of one small number, whose sum is exact in any order; that of their
    squares is not. Those of 16 bits have few digits, and their mean is rounded."""
    drawn = _local_gradients(tuple(shapes), tuple(dtypes), step, scale)
    return [[x.copy() for x in gradients] for gradients in drawn]


@lru_cache(8)
def _local_gradients(shapes, dtypes, step, scale):
    rng = np.random.default_rng(step)

    def one(shape, dtype):
        if np.dtype(dtype).itemsize == 2:
            return np.array(rng.integers(-99, 99, shape) * 2.0**-6, dtype)
        return np.array(rng.integers(-(2**21), 2**21, shape) * scale, dtype)

    return [list(map(one, shapes, dtypes)) for _ in range(RANKS)]


def equal_gradients(shapes, step):
    """The same on all ranks, and so their own mean, exactly."""
    rng = np.random.default_rng(step)
    return [np.array(rng.integers(-999, 1000, s) / 64, np.float32) for s in shapes]


def mean(gradients):
    """What a single process is given: the sum divided by the number of ranks, rounded once."""
    tensors = zip(*gradients, strict=True)
    return list(map(_mean, tensors))


def _mean(tensor):
    dtype = tensor[0].dtype
    real = np.float32 if dtype.itemsize == 2 else dtype.type
    total = np.sum([np.asarray(x, real) for x in tensor], axis=0, dtype=real)
    return np.asarray(total / real(RANKS)).astype(dtype)


def same_bits(a, b):
    return [x.tobytes() for x in a] == [x.tobytes() for x in b]


def refused(kind, expected, call, start=""):
    """The call raises on each rank, with the same message, which starts like this."""
    try:
        call()
    except kind as error:
        messages = COMM.allgather(str(error))
        whole = not isinstance(error, OSError) or error.errno is not None
        assert len(set(messages)) == 1, messages
        assert expected in messages[0], messages[0]
        assert messages[0].startswith(start), messages[0]
        assert whole, "an OSError without errno"
        return
    raise AssertionError(f"rank {RANK}: nothing was raised; expected {expected!r}")


def run(programs):
    """Run those named on the command line, or all."""
    for name in sys.argv[1:] or programs:
        programs[name]()
        wait_for_all()
        if RANK == 0:
            print(name, "ok", flush=True)
