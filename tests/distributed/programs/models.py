"""Ordinary models in buckets of the default size, against a single process; and the collectives."""

from itertools import pairwise

import numpy as np
from common import RANK, RANKS, draw, local_gradients, mean, run, same_bits

from fused_adamw import AdamW, sharded
from fused_adamw._distributed.mpi import (
    gather_vectors,
    private_duplicate,
    start_allgather,
    start_reduce_scatter,
    world,
)
from fused_adamw.sharded import BUCKET_BYTES, ShardedAdamW

OPTIONS = ({}, {"max_grad_norm": 1.0}, {"state_dtype": "8bit", "ema_decay": 0.5})


def perceptron(*widths):
    return [shape for a, b in pairwise(widths) for shape in ((a, b), (b,))]


def compare(shapes, dtype=np.float32, order="C", bucket_bytes=BUCKET_BYTES, **options):
    params = [np.asarray(p, order=order) for p in draw(shapes, dtype)]
    copies = [p.copy("K") for p in params]
    single = AdamW(params, **options)
    of_all = ShardedAdamW(copies, bucket_bytes=bucket_bytes, **options)
    for step in range(2):
        gradients = local_gradients(shapes, [dtype] * len(shapes), step)
        assert single.step(mean(gradients)) == of_all.step(gradients[RANK])
        assert same_bits(params, copies), (shapes, options, step)


def perceptrons():
    for options in OPTIONS:
        compare(perceptron(784, 256, 10), **options)
    compare(perceptron(784, 256, 10), np.float64)
    compare([(784 * 256,), (256,)])
    rng = np.random.default_rng(0)
    for _ in range(8):
        compare(perceptron(*rng.integers(1, 700, rng.integers(2, 5))))


def transformer():
    for d in (16, 96):
        block = [(d, 3 * d), (3 * d,), (d, d), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
        compare([(61, d), (64, d), *block * 2, (d,), (d, 61)])


def gradients_in_another_order():
    """They are packed, whatever the size of the tensor."""
    compare([(900, 1000), (300, 100), (7, 3)], order="F")


def counts_that_would_not_fit():
    """However large the buckets may be, no collective moves more than an MPI can count."""
    largest, sharded.MAX_COLLECTIVE_BYTES = sharded.MAX_COLLECTIVE_BYTES, 1 << 18
    opt = ShardedAdamW(draw([(1000, 300), (5,)]), bucket_bytes=1 << 40)
    assert RANKS == 1 or max(bucket.nbytes for bucket in opt.buckets) <= 1 << 18
    compare([(1000, 300), (5,)], bucket_bytes=1 << 40)
    sharded.MAX_COLLECTIVE_BYTES = largest
    assert largest < 1 << 31


def collectives():
    """With all kinds of counts, 0 among them."""
    comm = private_duplicate(world())
    rng = np.random.default_rng(1)
    for case in range(40):
        largest = (3, 1 << 10, 1 << 16, 1 << 19)[case % 4]
        counts = rng.integers(0, largest, RANKS) * (rng.random(RANKS) < 0.7)
        counts[case % RANKS] = largest
        dtype = (np.float32, np.float64)[case % 2]
        total = int(counts.sum())
        sent = [rng.integers(-999, 1000, total).astype(dtype) for _ in range(RANKS)]
        begin, end = counts[:RANK].sum(), counts[: RANK + 1].sum()
        received = np.full(counts[RANK], np.nan, dtype)
        start_reduce_scatter(comm, sent[RANK], received, counts.tolist()).Wait()
        assert np.array_equal(received, sum(sent)[begin:end])

        gathered = np.full(total, np.nan, dtype)
        gathered[begin:end] = sent[0][begin:end]
        starts = [int(counts[:rank].sum()) for rank in range(RANKS)]
        start_allgather(comm, gathered, counts.tolist(), starts).Wait()
        assert np.array_equal(gathered, sent[0])

        vector = sent[0][begin:end].astype(np.float64)
        assert np.array_equal(gather_vectors(comm, vector, counts.tolist()), sent[0])


PROGRAMS = (
    perceptrons,
    transformer,
    gradients_in_another_order,
    counts_that_would_not_fit,
    collectives,
)
run({f.__name__: f for f in PROGRAMS})
