"""One AdamW step, from the 13 tensors of the tiny transformer to 2^26 parameters."""

import math

import numpy as np

from fused_adamw.bench.harness import Contest
from fused_adamw.bench.implementations import CONTENDERS, LIMIT, OURS, loaded, our_variants
from fused_adamw.bench.workloads import READ_AND_WRITTEN, draw, tiny_transformer

MODEL = tiny_transformer()

CASES = {  # id: (what, shapes)
    "model": ("13 tensors of the tiny transformer", MODEL),
    "one16": ("one array of 16", [(16,)]),
    **{f"pow{k}": (f"2^{k}", [(2**k,)]) for k in (16, 20, 24, 26)},
}

PEERS = ("pure-python", "numpy", "torch-fused", "torch-foreach", "numba", "optax", LIMIT)


def contenders_for(parameters):
    """{name: prepare} of ours, in each variant, and of the peers that suit this number."""
    ours = next(c for c in CONTENDERS if c.name == OURS)
    peers = [c for c in CONTENDERS if c.name in PEERS and c.suits(parameters, "float32")]
    return {c.name: step for c in (ours, *our_variants(), *peers) if (step := loaded(c))}


def contests():
    for dtype in (np.float32, np.float64):
        for case, (what, shapes) in CASES.items():
            size = sum(map(math.prod, shapes))
            yield Contest(
                f"{case}-{dtype.__name__}",
                f"{what}, {dtype.__name__}: {size:,} parameters",
                contenders_for(size),
                lambda shapes=shapes, dtype=dtype: draw(shapes, dtype),
                size,
                READ_AND_WRITTEN * size * dtype().itemsize,
            )


def bench_step(benchmark, results, contest, turn, contender):
    results.time_block(benchmark, contest, turn, contender)
