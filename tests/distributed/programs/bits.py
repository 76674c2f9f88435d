"""The sharded optimizer against a single process that has the mean gradients, step by step."""

from contextlib import suppress
from itertools import product

import numpy as np
from common import RANKS, draw, local_gradients, run
from compared import EVEN, SMALL, TINY, UNEVEN, pair, step_both

from fused_adamw.schedules import LinearWarmup

HALF = [np.float16]
with suppress(ImportError):
    from ml_dtypes import bfloat16

    HALF.append(bfloat16)

ALL = UNEVEN, EVEN, TINY, SMALL


def end_below_zero(t):
    """A schedule that misses 0 by rounding."""
    return 0.1 if t == 1 else -1e-17


OPTIONS = [
    {},
    {"lr": end_below_zero, "weight_decay": 0.3},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.3},
    {"max_grad_norm": 1.0, "eps": lambda t: 0.1 / t},
    {"skip_nonfinite": True, "lr": LinearWarmup(0.1, 3)},
    {"max_grad_norm": 1e9, "skip_nonfinite": True, "amsgrad": True, "ema_decay": 0.9},
]
LOW_PRECISION = [
    {"state_dtype": "8bit"},
    {"state_dtype": "bfloat16", "max_grad_norm": 0.5},
    {"state_dtype": "8bit", "max_grad_norm": 0.5, "seed": 7, "ema_decay": 0.75},
    {"state_dtype": "bfloat16", "amsgrad": True, "seed": None},
]


def compare(shapes, dtypes, steps=2, scale=1.0, **options):
    made = pair([*map(np.array, draw_each(shapes, dtypes))], **options)
    for step in range(steps):
        step_both(made, local_gradients(shapes, dtypes, step), scale)


def draw_each(shapes, dtypes):
    return [x.astype(d) for x, d in zip(draw(shapes, np.float64), dtypes, strict=True)]


def float32():
    for shapes in ALL:
        for options in OPTIONS if shapes is UNEVEN else OPTIONS[1:3]:
            compare(shapes, [np.float32] * len(shapes), **options)


def float64():
    for options in OPTIONS:
        compare(UNEVEN, [np.float64] * len(UNEVEN), **options)


def mixed_dtypes():
    for options in OPTIONS:
        compare(UNEVEN, [np.float32, np.float64] * 3 + [np.float32], **options)


def low_precision():
    for shapes in (UNEVEN, SMALL):
        for options in LOW_PRECISION:
            compare(shapes, [np.float32] * len(shapes), steps=3, **options)


def half_precision():
    """Parameters of 16 bits, with all moments, with and without master weights."""
    kinds = (None, "float32", "bfloat16", "8bit")
    for dtype, state_dtype, masters in product(HALF, kinds, (False, True)):
        options = {"state_dtype": state_dtype, "master_weights": masters, "ema_decay": 0.9}
        compare(UNEVEN, [dtype] * len(UNEVEN), **options)
    for dtype, options in product(HALF, ({"max_grad_norm": 0.5}, {"skip_nonfinite": True})):
        compare(SMALL[:40], [dtype] * 40, master_weights=True, **options)
        compare(UNEVEN, [dtype, np.float32] * 3 + [np.float64], master_weights=True, **options)
        made = pair(
            [np.asarray(p, order="F") for p in draw([(300, 400), (6, 7)], dtype)],
            master_weights=True,
            **options,
        )
        for step in range(2):
            step_both(made, local_gradients([(300, 400), (6, 7)], [dtype] * 2, step), 0.3)


def large_float16():
    """Their sum would be infinite in float16; their mean is not."""
    made = pair(draw([(50_000,), (7,)], np.float16), lr=0.1, master_weights=True)
    large = [np.full(50_000, 60_000, np.float16), np.full(7, -60_000, np.float16)]
    step_both(made, [large] * RANKS)
    assert all(np.isfinite(p).all() for p in made[2])


def grad_scale():
    for options in OPTIONS[:3]:
        compare(UNEVEN, [np.float32] * len(UNEVEN), scale=0.3, **options)


def tiny_gradients():
    """Their means are subnormal, and rounded, before a factor makes them normal numbers."""
    shapes = [(50_000,)]
    for factor in (1.0, 2.0**100):
        made = pair(draw(shapes))
        for step in range(2):
            tiny = local_gradients(shapes, [np.float32], step, scale=2.0**-149)
            step_both(made, tiny, factor)


def random_gradients():
    """A sum of two has one order only."""
    if RANKS > 2:
        return
    made = pair(draw(UNEVEN), max_grad_norm=0.1)
    for step in range(3):
        step_both(made, [draw(UNEVEN, seed=10 * step + rank) for rank in range(RANKS)])


PROGRAMS = (
    *(float32, float64, mixed_dtypes, low_precision, half_precision, large_float16),
    *(grad_scale, tiny_gradients, random_gradients),
)
run({program.__name__: program for program in PROGRAMS})
