"""One AdamW step, from the 13 tensors of the tiny transformer to 2^26 parameters."""

from functools import partial

import numpy as np
from tables import OURS

from fused_adamw.bench.harness import Comparison
from fused_adamw.bench.implementations import IMPLEMENTATIONS, Implementation
from fused_adamw.bench.implementations.base import num_threads
from fused_adamw.bench.implementations.ours import load_function
from fused_adamw.bench.workloads import ARRAYS_MOVED, count_parameters, draw, tiny_transformer

MODEL = tiny_transformer()

CASES = {  # id: (title, shapes)
    "model": ("13 tensors of the tiny transformer", MODEL),
    "one16": ("one array of 16", [(16,)]),
    **{f"pow{k}": (f"2^{k}", [(2**k,)]) for k in (16, 20, 24, 26)},
}

OTHERS = ("pure-python", "numpy", "torch-fused", "torch-foreach", "numba", "optax")
ONE_THREAD = Implementation(f"{OURS}-1-thread", partial(load_function, num_threads=1))


def implementations_for(num_parameters, dtype, loader):
    """{name: prepare} of ours, on all threads and on one, and of the others that are suitable."""
    rows = [IMPLEMENTATIONS[name] for name in (OURS, *OTHERS, "bandwidth-bound")]
    if num_threads() > 1:
        rows.insert(1, ONE_THREAD)
    suitable = [row for row in rows if row.unsuitable(num_parameters, dtype) is None]
    return {row.name: prepare for row in suitable if (prepare := loader.load(row))}


def comparisons(loader):
    for dtype in ("float32", "float64"):
        for case, (title, shapes) in CASES.items():
            size = count_parameters(shapes)
            yield Comparison(
                f"{case}-{dtype}",
                f"{title}, {dtype}: {size:,} parameters",
                implementations_for(size, dtype, loader),
                partial(draw, shapes, dtype),
                size,
                ARRAYS_MOVED * size * np.dtype(dtype).itemsize,
            )


def bench_step(benchmark, results, comparison, turn, implementation):
    results.time_block(benchmark, comparison, turn, implementation)
