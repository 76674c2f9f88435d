"""Checkpoints of released versions, which hold their own inputs: what a few steps have to give.

    python tests/support/released.py VERSION

writes the files of a version that is about to be released. Those of earlier ones stay as they are.
"""

import sys
from pathlib import Path

import numpy as np
from arrays import dtype_named

from fused_adamw import AdamW
from fused_adamw.checkpoint import save_checkpoint

FOLDER = Path(__file__).parents[1] / "checkpoint" / "released"
SHAPES = {"w": (3, 90), "b": (7,), "s": ()}  # of two blocks and a part; small; of no dimension
STEPS = 3
COMMON = {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-7, "weight_decay": 0.1}
CASES = {
    "float32": ("float32", {}),
    "float32-amsgrad-ema": ("float32", {"amsgrad": True, "ema_decay": 0.9, "max_grad_norm": 1.0}),
    "float32-bfloat16": ("float32", {"state_dtype": "bfloat16", "seed": 6}),
    "float32-bfloat16-amsgrad": ("float32", {"state_dtype": "bfloat16", "amsgrad": True}),
    "float32-8bit": ("float32", {"state_dtype": "8bit", "seed": 6}),
    "float32-8bit-nearest": ("float32", {"state_dtype": "8bit", "seed": None}),
    "float64": ("float64", {}),
    "float64-amsgrad-ema": ("float64", {"amsgrad": True, "ema_decay": 0.9}),
    "bfloat16": ("bfloat16", {"seed": 6}),
    "bfloat16-nearest": ("bfloat16", {"seed": None}),
    "bfloat16-float32-master": ("bfloat16", {"state_dtype": "float32", "master_weights": True}),
    "bfloat16-8bit-master-ema": (
        "bfloat16",
        {"state_dtype": "8bit", "master_weights": True, "ema_decay": 0.9},
    ),
    "float16": ("float16", {"seed": 6}),
    "float16-bfloat16": ("float16", {"state_dtype": "bfloat16", "seed": None}),
    "float16-8bit-master": ("float16", {"state_dtype": "8bit", "master_weights": True}),
}


def steps(params, gradient, options):
    """An optimizer over ``params`` after a few steps; each multiplies the gradient by a power of 2,
    which is exact, and one lacks a tensor."""
    optimizer = AdamW(params, **options)
    for k in range(STEPS):
        grads = {name: np.array(g * g.dtype.type(2.0**-k)) for name, g in gradient.items()}
        optimizer.step(grads if k != 1 else grads | {"b": None})
    return optimizer


def inputs(dtype):
    """Parameters and gradients; some gradients are 0, and many small or large."""
    rng = np.random.default_rng(0)
    params, gradient = {}, {}
    for name, shape in SHAPES.items():
        values = rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 2, shape)
        gradient[name] = np.array(values * (rng.random(shape) < 0.95), dtype)
        params[name] = np.array(rng.standard_normal(shape), dtype)
    return params, gradient


def as_stored(array):
    """What NumPy has no type for as its bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def write(version):
    folder = FOLDER / version
    folder.mkdir()
    for case, (dtype, options) in CASES.items():
        params, gradient = inputs(dtype_named(dtype))
        given = {f"start.{name}": as_stored(p).copy() for name, p in params.items()}
        given |= {f"gradient.{name}": as_stored(g) for name, g in gradient.items()}
        optimizer = steps(params, gradient, COMMON | options)
        made_from = {"dtype": dtype, "options": COMMON | options}
        save_checkpoint(folder / f"{case}.safetensors", optimizer, extra=made_from, arrays=given)


if __name__ == "__main__":
    write(sys.argv[1])
