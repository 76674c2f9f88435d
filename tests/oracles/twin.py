"""The arithmetic of csrc/kernels/formula.inc in NumPy, which the kernels match bit by bit."""

import math
from decimal import Decimal, localcontext

import numpy as np


def bias_correction(beta, t):
    """1 - beta^t, rounded once: from so many digits that even ties are seen."""
    with localcontext(prec=150):
        return float(1 - Decimal(beta) ** t)


def adamw_twin(
    p,
    g,
    m,
    v,
    t,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.01,
    *,
    scale=1.0,
    v_max=None,
):
    """The new (p, m, v), of the dtype of ``p``; with ``v_max``, AMSGrad's is a fourth."""
    real = p.dtype.type
    b1, b2 = float(real(betas[0])), float(real(betas[1]))
    c1, c2 = real(1 - b1), real(1 - b2)
    step = real(lr / bias_correction(b1, t))
    rsqrt_bc2 = real(1 / math.sqrt(bias_correction(b2, t)))
    decay, eps, scale = real(lr * weight_decay), real(eps), real(scale)
    b1, b2 = real(b1), real(b2)
    with np.errstate(all="ignore"):
        g = scale * g
        m = b1 * m + c1 * g
        v = b2 * v + c2 * (g * g)
        largest = v if v_max is None else np.maximum(v_max, v)
        p = p - (decay * p + step * (m / (np.sqrt(largest) * rsqrt_bc2 + eps)))
    return (p, m, v) if v_max is None else (p, m, v, largest)


def ema_twin(ema, p, ema_decay):
    """The new average of the weights, given the new ``p``, both of one dtype."""
    real = p.dtype.type
    d = float(real(ema_decay))
    with np.errstate(all="ignore"):
        return real(d) * ema + real(1 - d) * p
