"""Where in a page the arrays of the state begin: moved apart, as ``AdamW`` allocates them, or all
at one offset, as ``np.zeros`` returns large arrays.

    python benches/bench_page_offsets.py
"""

import argparse
import os
import random
import time
from statistics import median

import ml_dtypes
import numpy as np
from option_types import integer, positive, threads

from fused_adamw import AdamW

MIXES = {
    "float32": (np.float32, {}),
    "float32, bfloat16 moments": (np.float32, {"state_dtype": "bfloat16"}),
    "float32, 8-bit moments": (np.float32, {"state_dtype": "8bit"}),
    "bfloat16 with master": (ml_dtypes.bfloat16, {"master_weights": True}),
}
ALLOCATE = {"apart": None, "at one offset": np.zeros}
STEPS = 5


def time_of_a_step(size, threads, dtype, **options):
    """The median of STEPS, in ns a parameter, with new arrays."""
    opt = AdamW(np.ones(size, dtype), num_threads=threads, **options)
    gradient = np.full(size, 1e-2, dtype)
    opt.step(gradient)  # writes to each page
    times = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        opt.step(gradient)
        times.append(time.perf_counter() - begin)
    return median(times) / size * 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--size", type=integer(1, 40), default=26, help="log2 of the parameters (default 26)"
    )
    parser.add_argument("--threads", type=threads, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=positive, default=15, help="new arrays each (default 15)")
    args = parser.parse_args()
    print("| | apart, ns | at one offset, ns | ratio |\n|---|--:|--:|--:|")
    for name, (dtype, options) in MIXES.items():
        times = {way: [] for way in ALLOCATE}
        for _ in range(args.rounds):
            for way in random.sample(list(ALLOCATE), 2):
                allocate = {"allocate": ALLOCATE[way]}
                ns = time_of_a_step(2**args.size, args.threads, dtype, **options, **allocate)
                times[way].append(ns)
        apart, together = (median(times[way]) for way in ALLOCATE)
        print(f"| {name} | {apart:.3f} | {together:.3f} | {together / apart:.2f} |", flush=True)


if __name__ == "__main__":
    main()
