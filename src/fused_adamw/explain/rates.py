"""Effective learning rates: lr / (sqrt(v_hat) + eps), a separate rate for each parameter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from ..reference import bias_correction
from ..tiny.layers import FloatArray
from ..tiny.model import TARGETS, TOKENS, TinyTransformer
from .adamw import Hyperparameters, adamw_of, check_positive_eps, update_of

GRADIENT_SIZES = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0)
TRAINING_STEPS = (1, 10, 100, 500)


@dataclass(frozen=True)
class Rate:
    """The effective learning rate of a gradient at the first step."""

    gradient: float
    v_hat: float
    effective_lr: float
    multiplier: float  # of lr


@dataclass(frozen=True)
class TensorRates:
    """Effective learning rates of a tensor's parameters at a step, as multiples of lr.

    Parameters whose gradient has been 0 at every step are left out: they have no v to divide by.
    The rates are None where all are of this kind.
    """

    step: int
    tensor: str
    least: float | None
    median: float | None
    largest: float | None
    without_gradient: int  # the number of parameters that are left out


@dataclass(frozen=True)
class Rates:
    """The section."""

    hyperparameters: Hyperparameters
    by_gradient: list[Rate]
    by_tensor: list[TensorRates]
    losses: dict[int, float]  # of the trained model after the steps of `by_tensor`


def explain_rates(hyperparameters: Hyperparameters | None = None) -> Rates:
    """Compute the section.

    Raises:
        TypeError, ValueError: a hyper-parameter is invalid; the message names it.
    """
    h = Hyperparameters() if hyperparameters is None else hyperparameters
    check_positive_eps(h)
    model = TinyTransformer()
    optimizer = adamw_of(model, h)
    by_tensor: list[TensorRates] = []
    losses: dict[int, float] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(1, TRAINING_STEPS[-1] + 1):
            _, grads = model.loss_and_gradients(TOKENS, TARGETS)
            optimizer.step(grads)
            if step in TRAINING_STEPS:
                losses[step] = model.loss(TOKENS, TARGETS)
                correction = bias_correction(h.betas[1], step)
                moments = cast("Mapping[str, FloatArray]", optimizer.v)
                by_tensor += [
                    _tensor_rates(step, name, v / correction, h.eps) for name, v in moments.items()
                ]
    updates = (update_of(0.0, size, 0.0, 0.0, 1, h) for size in GRADIENT_SIZES)
    by_gradient = [Rate(u.gradient, u.v_hat, u.effective_lr, u.multiplier) for u in updates]
    return Rates(h, by_gradient, by_tensor, losses)


def _tensor_rates(step: int, name: str, v_hat: FloatArray, eps: float) -> TensorRates:
    moved = v_hat[v_hat != 0]
    without = v_hat.size - moved.size
    if not moved.size:
        return TensorRates(step, name, None, None, None, without)
    multipliers = 1 / (np.sqrt(moved) + eps)
    least, median, largest = (float(f(multipliers)) for f in (np.min, np.median, np.max))
    return TensorRates(step, name, least, median, largest, without)
