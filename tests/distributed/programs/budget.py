"""What a rank may use: memory, bytes given to the collectives, visits of slots."""

import tracemalloc

import numpy as np
from common import COMM, RANK, RANKS, draw, run

from fused_adamw import AdamW
from fused_adamw._core import CHUNK
from fused_adamw.sharded import ShardedAdamW

BUCKET = 1 << 17
SHAPES = [(1 << 20,), (1000, 301), (7,), *[(333,)] * 50]
SLACK = 6144 * len(SHAPES)  # bytes: Python's own objects
OPTIONS = (
    {},
    {"max_grad_norm": 1.0},
    {"state_dtype": "8bit"},
    {"amsgrad": True},
    {"ema_decay": 0.9},
)
HALF = (  # of float16 parameters
    {"state_dtype": "float32", "master_weights": True},
    {"state_dtype": "float32", "master_weights": True, "max_grad_norm": 1.0},
)


class Counting:
    """A communicator that adds up the bytes that it is given."""

    def __init__(self, comm):
        self.comm, self.sent, self.received, self.other = comm, 0, 0, 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Ireduce_scatter(self, sent, received, counts, op):  # noqa: N802
        self.sent += sent.nbytes
        return self.comm.Ireduce_scatter(sent, received, counts, op)

    def Iallgatherv(self, sent, received):  # noqa: N802
        self.received += received[0].nbytes
        return self.comm.Iallgatherv(sent, received)

    def Allreduce(self, sent, received, op):  # noqa: N802
        self.other += received.nbytes
        return self.comm.Allreduce(sent, received, op)

    def Allgatherv(self, sent, received):  # noqa: N802
        self.other += received[0].nbytes
        return self.comm.Allgatherv(sent, received)


def communicated_bytes():
    if RANKS == 1:
        return
    for options in (*OPTIONS, *HALF):
        dtype = np.float16 if options in HALF else np.float32
        params, grads = draw(SHAPES, dtype), draw(SHAPES, dtype)
        opt = ShardedAdamW(params, bucket_bytes=BUCKET, **options)
        opt.comm = opt._bucket_comm.comm = counting = Counting(opt.comm)
        opt.step(grads)
        nbytes = sum(p.nbytes for p in params)
        in_float32 = 4 * sum(p.size for p in params)
        assert (counting.sent, counting.received) == (in_float32, nbytes)
        sums = sum(-(-p.size // CHUNK) for p in params) if "max_grad_norm" in options else 0
        assert counting.other == 24 + 8 * sums


def state():
    """Of each rank, at most an equal part and a chunk of each array of it."""
    for options in (*OPTIONS, *HALF):
        dtype = np.float16 if options in HALF else np.float32
        whole = AdamW(draw(SHAPES, dtype), **options).state_nbytes
        opt = ShardedAdamW(draw(SHAPES, dtype), bucket_bytes=BUCKET, **options)
        size = sum(np.prod(shape, dtype=int) for shape in SHAPES)
        excess = CHUNK * whole / size + 8 * len(SHAPES)
        assert opt.state_nbytes <= whole / RANKS + excess
        of_all = sum(COMM.allgather(opt.state_nbytes))
        assert of_all == whole, (of_all, whole)


def largest_part(opt):
    return max(bucket.part_nbytes(RANK) for bucket in opt.buckets)


def memory():
    """Beside its part of the state, a rank needs two buckets and its parts of them; a step needs no
    more."""
    for options in (*OPTIONS, *HALF):
        dtype = np.float16 if options in HALF else np.float32
        params, grads = draw(SHAPES, dtype), draw(SHAPES, dtype)
        tracemalloc.start()
        opt = ShardedAdamW(params, bucket_bytes=BUCKET, **options)
        kept, peak = tracemalloc.get_traced_memory()
        assert max(bucket.nbytes for bucket in opt.buckets) == BUCKET or RANKS == 1
        staging = 2 * (BUCKET + largest_part(opt)) if RANKS > 1 else 0
        assert kept <= opt.state_nbytes + staging + SLACK
        tracemalloc.reset_peak()
        for _ in range(2):
            opt.step(grads)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak - kept <= SLACK, (options, peak - kept)
        assert opt._bucket_comm._direct == []  # requests of a step are not kept


class CountingVisits:
    """Bound tensors that count the slots of steps."""

    def __init__(self, bound):
        self.bound, self.visits = bound, []

    def __getattr__(self, name):
        return getattr(self.bound, name)

    def step_range(self, first, grads, hypers, **options):
        self.visits += range(first, first + len(grads))
        return self.bound.step_range(first, grads, hypers, **options)


def visits():
    """A step visits each slot once, whatever the number of buckets."""
    shapes = [(20_000,)] * 100
    for options in OPTIONS:
        opt = ShardedAdamW(draw(shapes), bucket_bytes=8 * CHUNK, **options)
        assert RANKS == 1 or len(opt.buckets) >= 60
        counting = opt._collective_step._bound = CountingVisits(opt._bound)
        opt.step(draw(shapes))
        assert counting.visits == list(range(opt._bound.num_slots))


run({f.__name__: f for f in (communicated_bytes, state, memory, visits)})
