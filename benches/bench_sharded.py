"""The step of ``ShardedAdamW`` beside its parts, on one machine.

    for n in 1 2 4; do mpiexec -n $n python benches/bench_sharded.py; done
    mpiexec -n 2 python benches/bench_sharded.py --elements 4194304 --rounds 9 --clip

Three contenders take turns within each round: the whole step; the same collectives by themselves,
called straight through mpi4py, bucket for bucket; and the update of the rank's shard by itself. A
time is that of the slowest rank. The last column, the step over the sum of the two, is the
median over the rounds of the ratio within a round.
"""

import argparse
import statistics
from time import perf_counter

import numpy as np
from mpi4py import MPI

from fused_adamw import AdamW
from fused_adamw.sharded import BUCKET_BYTES, ShardedAdamW

COMM = MPI.COMM_WORLD


class Counted:
    """A communicator that counts the bytes handed to its collectives."""

    def __init__(self, comm):
        self.comm, self.sent, self.received = comm, 0, 0

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def Ireduce_scatter(self, sent, received, counts, op):  # noqa: N802
        self.sent += (received if sent is MPI.IN_PLACE else sent).nbytes
        return self.comm.Ireduce_scatter(sent, received, counts, op)

    def Iallgatherv(self, sent, received):  # noqa: N802
        self.received += received[0].nbytes
        return self.comm.Iallgatherv(sent, received)


def collectives(comm, plan, grads, params):
    """One reduce-scatter and one all-gather of each bucket, two under way at a time."""
    itemsize = grads.itemsize
    largest = max(bucket.counts[comm.rank] for bucket in plan)
    rooms = [np.empty(largest, grads.dtype) for _ in range(2)]
    kind = {4: MPI.FLOAT, 8: MPI.DOUBLE}[itemsize]

    def reduction(k):
        stretch, counts = plan[k].stretch, plan[k].counts
        received = rooms[k % 2][: counts[comm.rank]]
        return comm.Ireduce_scatter(grads[stretch.begin : stretch.end], received, counts)

    def take():
        pending, under_way = [], reduction(0)
        for k, bucket in enumerate(plan):
            done, under_way = under_way, reduction(k + 1) if k + 1 < len(plan) else None
            done.Wait()
            whole = params[bucket.stretch.begin : bucket.stretch.end]
            pending.append(
                comm.Iallgatherv(MPI.IN_PLACE, [whole, bucket.counts, bucket.starts, kind])
            )
        MPI.Request.Waitall(pending)

    return take if comm.size > 1 else lambda: None


def seconds(contender):
    COMM.Barrier()
    start = perf_counter()
    contender()
    return COMM.allreduce(perf_counter() - start, MPI.MAX)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 24)
    parser.add_argument("--bucket-bytes", type=int, default=BUCKET_BYTES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clip", action="store_true", help="with max_grad_norm")
    parser.add_argument("--threads", type=int, help="of each rank (default: as the class has it)")
    options = parser.parse_args()

    rng = np.random.default_rng(COMM.rank)
    params = np.ones(options.elements, np.float32)
    grads = rng.standard_normal(options.elements, np.float32)
    sharded = ShardedAdamW(
        params,
        bucket_bytes=options.bucket_bytes,
        max_grad_norm=1.0 if options.clip else None,
        num_threads=options.threads,
    )
    own = sum(bucket.counts[COMM.rank] for bucket in sharded.plan)
    shard = AdamW(np.ones(own, np.float32), num_threads=sharded.num_threads)
    shard_grads = grads[:own].copy()
    contenders = {
        "step": lambda: sharded.step(grads),
        "collectives": collectives(COMM, sharded.plan, grads, params.copy()),
        "update": lambda: shard.step(shard_grads),
    }
    found = {name: [] for name in contenders}
    for turn in range(options.rounds + 2):
        for name, contender in contenders.items():
            time = seconds(contender)
            if turn >= 2:  # after a warm-up
                found[name].append(time)

    counted = sharded._exchange.comm = Counted(sharded._exchange.comm)
    sharded.step(grads)
    if COMM.rank == 0:
        report(options, sharded, found, counted, params.nbytes)


def report(options, sharded, found, counted, nbytes):
    ratios = [s / (c + u) for s, c, u in zip(*found.values(), strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    times = "  ".join(f"{name} {statistics.median(x) * 1e3:.1f} ms" for name, x in found.items())
    print(
        f"{COMM.size} ranks of {sharded.num_threads} threads, {options.elements} float32"
        f"{', clipped' if options.clip else ''}: {times}  "
        f"step / (collectives + update) {middle:.2f} ({low:.2f} to {high:.2f})\n"
        f"  per rank and step: {counted.sent / nbytes:.3f} of the parameters' bytes handed to the "
        f"reduce-scatter, {counted.received / nbytes:.3f} to the all-gather; "
        f"state {sharded.state_nbytes / (2 * nbytes):.4f} of a single process's"
    )


if __name__ == "__main__":
    main()
