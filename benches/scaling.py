"""The cost model of docs/scaling.md: prints its computed tables.

    python benches/scaling.py

Measured constants come from benches/bench_sharded.py; the others are assumptions.
"""

import argparse
from inspect import signature
from math import log2

from fused_adamw.sharded import ShardedAdamW

BUCKET_BYTES = signature(ShardedAdamW).parameters["bucket_bytes"].default

STEP_BYTES = 28  # a float32 parameter: p, g, m, v read, and p, m, v written
ADD_BYTES = 12  # two read, one written
MEASURED_MEMORY = 31.7e9  # bytes/s of a core's update: 2^24 on 2 ranks
MEASURED_WIRE = {2: 5.12e9, 4: 2.78e9}  # bytes/s that a rank moves: 2^24
MEMORY = 200e9  # assumed of a host: bytes/s
STAGE = 10e-6  # assumed of a network: seconds a stage of a collective
LINKS = {"25 Gb/s": 25e9 / 8, "100 Gb/s": 100e9 / 8, "400 Gb/s": 400e9 / 8}
MODELS = {"7 B": 7e9, "70 B": 70e9, "175 B": 175e9}
HOSTS = (8, 64, 256, 1024)


def wire_bytes(size, ranks):
    """The bytes that a rank sends, and receives, in a reduce-scatter and an all-gather."""
    return 2 * 4 * size * (ranks - 1) / ranks


def memory_bytes(size, ranks, state_bytes=8):
    """Parameters, gradients, state, and two staging buffers: a bucket and a part of one each."""
    return 8 * size + state_bytes * size / ranks + 2 * BUCKET_BYTES * (1 + 1 / ranks)


def seconds(size, ranks, link, bucket=BUCKET_BYTES):
    """The seconds of (the wire, the latency of all stages, local memory)."""
    stages = 2 * (4 * size / bucket) * log2(ranks) * STAGE
    local = STEP_BYTES * size / ranks + ADD_BYTES * size * (ranks - 1) / ranks
    return wire_bytes(size, ranks) / link, stages, local / MEMORY


def check():
    print("| ranks | parameters | collectives, ms | update, ms | sum, ms |\n|--:|--:|--:|--:|--:|")
    for ranks, rate in MEASURED_WIRE.items():
        for power in (22, 24, 26):
            size = 2**power
            wire = 1e3 * wire_bytes(size, ranks) / rate
            # On two processors, four ranks take turns.
            update = 1e3 * STEP_BYTES * size / ranks / MEASURED_MEMORY * max(1, ranks / 2)
            print(f"| {ranks} | 2^{power} | {wire:.1f} | {update:.1f} | {wire + update:.1f} |")


def predict():
    links = " | ".join(LINKS)
    print(f"| parameters | hosts | memory, GB | with 8-bit state | {links} | local |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, size in MODELS.items():
        for ranks in HOSTS:
            memory = (memory_bytes(size, ranks, state) / 1e9 for state in (8, 2 + 8 / 256))
            found = [seconds(size, ranks, link) for link in LINKS.values()]
            times = " | ".join(f"{max(w + s, m):.2f} to {w + s + m:.2f}" for w, s, m in found)
            cells = " | ".join(f"{x:,.0f}" for x in memory)
            print(f"| {name} | {ranks} | {cells} | {times} | {found[0][2]:.2f} |")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    check()
    print()
    predict()
