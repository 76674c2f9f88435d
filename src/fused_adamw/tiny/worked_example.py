"""The worked example: one AdamW update, number by number."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from .. import fused_adamw
from ..reference import adamw_update

THETA, GRADIENT = 0.024634, -0.352893
LR, BETA1, BETA2, EPS, WEIGHT_DECAY = 0.001, 0.9, 0.999, 1e-8, 0.01
GRADIENT_SIZES = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0)

Update: TypeAlias = Callable[[float, float], tuple[float, float, float]]
"""Takes a parameter and its gradient; returns (theta, m, v) after the first step."""


class Quantity(NamedTuple):
    """A number of the worked update."""

    name: str
    formula: str
    value: float


def kernel_update(theta: float, gradient: float) -> tuple[float, float, float]:
    """Return (theta, m, v) after the first step, by the compiled update."""
    p, g, m, v = (np.array([value]) for value in (theta, gradient, 0.0, 0.0))
    fused_adamw(p, g, m, v, 1, lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=WEIGHT_DECAY)
    return p.item(), m.item(), v.item()


def reference_update(theta: float, gradient: float) -> tuple[float, float, float]:
    """Return (theta, m, v) after the first step, in pure Python."""
    return adamw_update(theta, gradient, 0.0, 0.0, 1, LR, BETA1, BETA2, EPS, WEIGHT_DECAY)


def worked_update(update: Update) -> list[Quantity]:
    """Return each quantity of the first step on `THETA` and `GRADIENT`, in order."""
    theta, m, v = update(THETA, GRADIENT)
    decayed, _, _ = update(THETA, 0.0)  # without a gradient only the decay is left
    return [
        Quantity("m", "beta1 m + (1 - beta1) g", m),
        Quantity("v", "beta2 v + (1 - beta2) g²", v),
        Quantity("m_hat", "m / (1 - beta1^t)", m / (1 - BETA1)),
        Quantity("v_hat", "v / (1 - beta2^t)", v / (1 - BETA2)),
        Quantity("shrunk by", "lr wd theta", THETA - decayed),
        Quantity("decayed", "theta (1 - lr wd)", decayed),
        Quantity("effective lr", "lr / (√v_hat + eps)", (decayed - theta) / GRADIENT),
        Quantity("update", "effective lr * m_hat", decayed - theta),
        Quantity("theta", "decayed - update", theta),
    ]


def effective_rates(update: Update) -> list[tuple[float, float]]:
    """Return gradient sizes and, for each, the effective learning rate as a multiple of lr."""
    return [(size, -update(0.0, size)[0] / (LR * size)) for size in GRADIENT_SIZES]
