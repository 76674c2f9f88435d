"""The arithmetic of csrc/adamw.inc in NumPy: the one copy, held bit-equal to the kernels."""

import math

import numpy as np


def adamw_twin(p, g, m, v, t, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """The new (p, m, v), as new arrays of the dtype of ``p``."""
    real = p.dtype.type
    b1, b2 = float(real(betas[0])), float(real(betas[1]))
    c1, c2 = real(1 - b1), real(1 - b2)
    step = real(lr / (1 - b1**t))
    rsqrt_bc2 = real(1 / math.sqrt(1 - b2**t))
    decay, eps = real(lr * weight_decay), real(eps)
    b1, b2 = real(b1), real(b2)
    with np.errstate(all="ignore"):
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        p = p - (decay * p + step * (m / (np.sqrt(v) * rsqrt_bc2 + eps)))
    return p, m, v
