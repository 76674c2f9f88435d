"""Optimizers on all ranks, and files in the folder that is the first argument."""

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from common import COMM, SMALL_BUCKETS, draw

from fused_adamw.sharded import ShardedAdamW

FOLDER = Path(sys.argv.pop(1))
SHAPES = [(100_001,), (7, 9), (), (0, 3), (200, 301), (16_384,), (300, 400)]


def params(seed=0, dtype=np.float32):
    arrays = [x.astype(dtype) for x in draw(SHAPES, np.float64, seed)]
    arrays[-1] = np.asarray(arrays[-1], order="F")
    return {f"tensor {i}": array for i, array in enumerate(arrays)}


def gradients(step, dtype=np.float32):
    """The same on all ranks, and so their own mean, exactly."""
    return {name: np.array(x, dtype) for name, x in _gradients(step).items()}


@lru_cache(8)
def _gradients(step):
    rng = np.random.default_rng(step)
    return {name: rng.integers(-999, 1000, x.shape) / 64 for name, x in params().items()}


def sharded(comm=COMM, first=0, dtype=np.float32, **options):
    return ShardedAdamW(params(first, dtype), comm=comm, bucket_bytes=SMALL_BUCKETS, **options)


def take(opt, steps, dtype=np.float32):
    for step in steps:
        opt.step(gradients(step, dtype))


def arrays(opt):
    return list(opt.param_groups[0]["params"].values())


def path(name):
    return FOLDER / f"{name}.safetensors"
