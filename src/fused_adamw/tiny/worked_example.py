"""The worked example: one AdamW update by hand, computed by whichever update is asked."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .._core import fused_adamw
from ..reference import adamw_update

THETA, GRADIENT = 0.024634, -0.352893
LR, BETA1, BETA2, EPS, WEIGHT_DECAY = 0.001, 0.9, 0.999, 1e-8, 0.01
GRADIENT_SIZES = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0)

Update: TypeAlias = Callable[[float, float], tuple[float, float, float]]


def kernel_update(theta: float, gradient: float) -> tuple[float, float, float]:
    """(theta, m, v) after the first step."""
    p, g, m, v = (np.array([value]) for value in (theta, gradient, 0.0, 0.0))
    fused_adamw(p, g, m, v, 1, lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=WEIGHT_DECAY)
    return p.item(), m.item(), v.item()


def reference_update(theta: float, gradient: float) -> tuple[float, float, float]:
    return adamw_update(theta, gradient, 0.0, 0.0, 1, LR, BETA1, BETA2, EPS, WEIGHT_DECAY)


def worked_update(update: Update) -> dict[tuple[str, str], float]:
    """The value of each quantity of the first step, under its name and formula."""
    theta, m, v = update(THETA, GRADIENT)
    decayed, _, _ = update(THETA, 0.0)  # without a gradient only the decay is left
    return {
        ("m", "beta1 m + (1 - beta1) g"): m,
        ("v", "beta2 v + (1 - beta2) g²"): v,
        ("m_hat", "m / (1 - beta1^t)"): m / (1 - BETA1),
        ("v_hat", "v / (1 - beta2^t)"): v / (1 - BETA2),
        ("shrunk by", "lr wd theta"): THETA - decayed,
        ("decayed", "theta (1 - lr wd)"): decayed,
        ("effective lr", "lr / (√v_hat + eps)"): (decayed - theta) / GRADIENT,
        ("update", "effective lr * m_hat"): decayed - theta,
        ("theta", "decayed - update"): theta,
    }


def effective_rates(update: Update) -> list[tuple[float, float]]:
    """Gradient sizes, and the multiple of lr that one unit of such a gradient moves theta by."""
    return [(size, -update(0.0, size)[0] / (LR * size)) for size in GRADIENT_SIZES]
