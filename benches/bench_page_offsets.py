"""Where in a page the arrays of the state begin: all at one offset, as ``np.zeros`` returns large
arrays; each moved by another multiple of 1,088 bytes; or as ``AdamW`` allocates them, which moves
those of 8 and 16 bits an element.

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
    "bfloat16 with master, bfloat16 moments": (ml_dtypes.bfloat16, {"master_weights": True}),
    "bfloat16 with master, float32 moments": (
        ml_dtypes.bfloat16,
        {"master_weights": True, "state_dtype": "float32"},
    ),
}
STAGGER = 1088  # bytes
STEPS = 5


class MovedApart:
    """Allocates the arrays of a state."""

    def __init__(self):
        self.arrays = 0

    def __call__(self, size, dtype):
        self.arrays += 1
        skipped = self.arrays * STAGGER // dtype.itemsize
        return np.zeros(skipped + size, dtype)[skipped:]


ALLOCATE = {"at one offset": lambda: np.zeros, "all moved": MovedApart, "AdamW": lambda: None}


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
    first, *others = ALLOCATE
    print(f"| | {first}, ns | {' | '.join(others)} |\n|---|--:|--:|--:|")
    for name, (dtype, options) in MIXES.items():
        times = {way: [] for way in ALLOCATE}
        for _ in range(args.rounds):
            for way in random.sample(list(ALLOCATE), len(ALLOCATE)):
                allocate = {"allocate": ALLOCATE[way]()}
                ns = time_of_a_step(2**args.size, args.threads, dtype, **options, **allocate)
                times[way].append(ns)
        own, *ratios = (median(times[way]) for way in ALLOCATE)
        listed = " | ".join(f"{x / own:.2f} ×" for x in ratios)
        print(f"| {name} | {own:.3f} | {listed} |", flush=True)


if __name__ == "__main__":
    main()
