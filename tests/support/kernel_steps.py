"""Steps of the kernels, beside the twin or with what only optimizers use."""

import numpy as np
from twin import adamw_twin

from fused_adamw import fused_adamw
from fused_adamw._core import BoundTensors, TreeSpec

HYPER = {"lr": 3e-3, "betas": (0.85, 0.99), "eps": 1e-6, "weight_decay": 0.1}
NUMBERS = (HYPER["lr"], HYPER["betas"], HYPER["eps"], HYPER["weight_decay"])


def assert_step_is_twin(arrays, t=3, hyper=HYPER, **how):
    p, g, m, v = arrays
    expected = adamw_twin(p, g, m, v, t, **hyper)
    gradient = g.copy()
    fused_adamw(p, g, m, v, t, **hyper, **how)
    for array, twin in zip((p, m, v), expected, strict=True):
        np.testing.assert_array_equal(array, twin, strict=True)
    np.testing.assert_array_equal(g, gradient)


class Kept:
    """The state of one tensor, as an optimizer keeps it."""

    def __init__(self, x, **others):
        self.format = x.p.dtype.name
        self.arrays = {"m": x.m, "v": x.v, **others}


def bound_step(x, t, scale=1.0, num_threads=1, ema_decay=None, **state):
    """Step t with what only optimizers use: AMSGrad, an average and a scale."""
    tensors = BoundTensors(TreeSpec(x.p), x.p, [Kept(x, **state)], roles=tuple(state))
    tensors.set_steps([t - 1])
    hyper = (*NUMBERS, (None, ema_decay))
    tensors.step(x.g, [hyper], abs(scale), None, False, scale < 0, num_threads)
    return tensors
