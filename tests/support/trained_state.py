"""Optimizers with state of any kind, after a few steps."""

import numpy as np
from arrays import dtype_named
from states import draw, train

from fused_adamw import AdamW

SHAPES = [(7, 90), (300,), (), (0, 3), (3, 40, 50)]
KINDS = [None, "float32", "bfloat16", "8bit"]


def trained(dtype="float32", order="C", steps=3, shapes=SHAPES, **options):
    dtype = dtype_named(dtype)
    params = [np.asarray(p, order=order) for p in draw(shapes, dtype)]
    opt = AdamW(params, lr=3e-3, **options)
    train(opt, range(steps))
    return opt
