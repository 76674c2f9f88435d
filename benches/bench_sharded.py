"""The step of ``ShardedAdamW`` compared with its parts, on one machine.

    for n in 1 2 4; do mpiexec -n $n python benches/bench_sharded.py; done
    mpiexec -n 2 python benches/bench_sharded.py --elements 4194304 --rounds 9 --clip

Three parts take turns in each round: the whole step; the same collectives alone, called through
mpi4py, bucket by bucket; and the update of the rank's shard alone. A time is that of the slowest
rank. The last column is the step divided by the sum of the other two: the median over the rounds of
the ratio within a round.
"""

import argparse
import statistics
from time import perf_counter

import numpy as np
from mpi4py import MPI
from option_types import integer, positive, threads

from fused_adamw import AdamW
from fused_adamw.sharded import ShardedAdamW

COMM = MPI.COMM_WORLD
WARM_UP_ROUNDS = 2


class CountingComm:
    """A communicator that counts the bytes passed to its collectives."""

    def __init__(self, comm):
        self.comm, self.reduced, self.gathered = comm, 0, 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Ireduce_scatter(self, sent, received, counts, op):  # noqa: N802
        self.reduced += sent.nbytes
        return self.comm.Ireduce_scatter(sent, received, counts, op)

    def Iallgatherv(self, sent, received):  # noqa: N802
        self.gathered += received[0].nbytes
        return self.comm.Iallgatherv(sent, received)


def collectives(comm, buckets, grads, params):
    """One reduce-scatter and one all-gather of each bucket, two in flight at a time."""
    if comm.size == 1:
        return lambda: None
    largest = max(bucket.counts[comm.rank] for bucket in buckets)
    received = [np.empty(largest, grads.dtype) for _ in range(2)]

    def start_reduction(k):
        _, begin, end = buckets[k].contiguous_range
        counts = buckets[k].counts
        own = received[k % 2][: counts[comm.rank]]
        return comm.Ireduce_scatter(grads[begin:end], own, counts)

    def exchange():
        gathers, reduction = [], start_reduction(0)
        for k, bucket in enumerate(buckets):
            last = k + 1 == len(buckets)
            previous, reduction = reduction, None if last else start_reduction(k + 1)
            previous.Wait()
            _, begin, end = bucket.contiguous_range
            whole = [params[begin:end], bucket.counts, bucket.starts, MPI.FLOAT]
            gathers.append(comm.Iallgatherv(MPI.IN_PLACE, whole))
        MPI.Request.Waitall(gathers)

    return exchange


def seconds(part):
    """Of the slowest rank."""
    COMM.Barrier()
    start = perf_counter()
    part()
    return COMM.allreduce(perf_counter() - start, MPI.MAX)


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--elements", type=positive, default=1 << 24)
    parser.add_argument("--bucket-bytes", type=integer(2**17), default=1 << 23)
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--clip", action="store_true", help="with max_grad_norm")
    parser.add_argument("--threads", type=threads, help="of each rank (default: that of the class)")
    return parser.parse_args()


def main():
    options = parse_options()
    rng = np.random.default_rng(COMM.rank)
    params = np.ones(options.elements, np.float32)
    grads = rng.standard_normal(options.elements, np.float32)
    sharded = ShardedAdamW(
        params,
        bucket_bytes=options.bucket_bytes,
        max_grad_norm=1.0 if options.clip else None,
        num_threads=options.threads,
    )
    own = sum(bucket.counts[COMM.rank] for bucket in sharded.buckets)
    shard = AdamW(np.ones(own, np.float32), num_threads=sharded.num_threads)
    shard_grads = grads[:own].copy()
    parts = {
        "step": lambda: sharded.step(grads),
        "collectives": collectives(COMM, sharded.buckets, grads, params.copy()),
        "update": lambda: shard.step(shard_grads),
    }
    times = {name: [] for name in parts}
    for turn in range(options.rounds + WARM_UP_ROUNDS):
        for name, part in parts.items():
            time = seconds(part)
            if turn >= WARM_UP_ROUNDS:
                times[name].append(time)

    counted = sharded._bucket_comm.comm = CountingComm(sharded._bucket_comm.comm)
    sharded.step(grads)
    if COMM.rank == 0:
        report(options, sharded, times, counted, params.nbytes)


def report(options, sharded, times, counted, nbytes):
    ratios = [s / (c + u) for s, c, u in zip(*times.values(), strict=True)]
    low, middle, high = statistics.quantiles(ratios if len(ratios) > 1 else ratios * 2, n=4)
    medians = "  ".join(f"{name} {statistics.median(x) * 1e3:.1f} ms" for name, x in times.items())
    print(
        f"{COMM.size} ranks of {sharded.num_threads} threads, {options.elements} float32"
        f"{', clipped' if options.clip else ''}: {medians}  "
        f"step / (collectives + update) {middle:.2f} ({low:.2f} to {high:.2f})\n"
        f"  per rank and step, as a share of the parameters' bytes: {counted.reduced / nbytes:.3f} "
        f"passed to the reduce-scatter, {counted.gathered / nbytes:.3f} to the all-gather; "
        f"state {sharded.state_nbytes / (2 * nbytes):.4f} of that of a single process"
    )


if __name__ == "__main__":
    main()
