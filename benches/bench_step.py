"""One AdamW step, from the 13 tensors of the tiny transformer to 2^26 parameters."""

import math

import numpy as np
from contest import Contest, time_block
from peers import contenders_for

from fused_adamw.tiny_transformer import TinyTransformer

MODEL = [parameter.shape for parameter in TinyTransformer().parameters.values()]

CASES = {  # id: (what, shapes)
    "model": ("13 tensors of the tiny transformer", MODEL),
    "one16": ("one array of 16", [(16,)]),
    **{f"pow{k}": (f"2^{k}", [(2**k,)]) for k in (16, 20, 24, 26)},
}

CACHE_LINE = 64
READ_AND_WRITTEN = 4 + 3  # arrays


def aligned(array):
    """A copy that starts a cache line, as the arrays of torch and jax do. NumPy's start anywhere,
    which costs every contender the same few percent and would vary from run to run."""
    memory = np.empty(array.nbytes + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def draw(shapes, dtype):
    """params, grads, m and v, as after some steps of training."""
    rng = np.random.default_rng(0)

    def arrays(low, high):
        return [aligned(rng.random(s, dtype) * dtype(high - low) + dtype(low)) for s in shapes]

    return arrays(-1, 1), arrays(-0.1, 0.1), arrays(-0.01, 0.01), arrays(1e-4, 1e-3)


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
    results.add_block(contest, contender, turn, time_block(benchmark, contest.step(contender)))
