"""AdamW and SGD as textbooks write them: one number at a time, in pure Python.

This file states the formula. It is written to be read, not to be fast. The compiled update computes
the same formula with different roundings, which docs/arithmetic.md defines.

AdamW, for a parameter theta with gradient g at step t = 1, 2, ...::

    m      <- beta1 m + (1 - beta1) g               the mean of recent gradients
    v      <- beta2 v + (1 - beta2) g^2             the mean of their squares
    m_hat   = m / (1 - beta1^t)                     both means began at zero: undo that bias
    v_hat   = v / (1 - beta2^t)
    theta  <- theta (1 - lr wd)                     weight decay, decoupled from the gradient
    theta  <- theta - lr m_hat / (sqrt(v_hat) + eps)

Sources: D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015
(arXiv:1412.6980), for the moments and their correction; I. Loshchilov and F. Hutter, "Decoupled
Weight Decay Regularization", ICLR 2019 (arXiv:1711.05101), for the decay.

The weight decay is multiplied by the learning rate, as in PyTorch and optax. Loshchilov and Hutter
multiply it by the schedule factor alone: their lambda is lr * wd here, and a change of lr leaves
their decay unchanged.
"""

import math
from collections.abc import Sequence

__all__ = ["adamw_update", "adamw_update_list", "sgd_update"]


def adamw_update(
    theta: float,
    gradient: float,
    m: float,
    v: float,
    t: int,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    wd: float = 0.01,
) -> tuple[float, float, float]:
    """Return (theta, m, v) after one AdamW step.

    The formula, its sources and the convention for weight decay are at the top of this file.

    Args:
        theta: the parameter.
        gradient: the gradient of the loss with respect to it.
        m: the first moment; 0 before the first step.
        v: the second moment; 0 before the first step.
        t: number of this step, counted from 1.
        lr: learning rate.
        beta1: decay rate of m.
        beta2: decay rate of v.
        eps: added to the denominator.
        wd: weight decay.

    Raises:
        ValueError: t is less than 1.

    >>> theta, m, v = adamw_update(0.024634, -0.352893, m=0.0, v=0.0, t=1)
    >>> print(f"{theta:.6f} {m:.7f} {v:.9f}")
    0.025634 -0.0352893 0.000124533
    """
    _check_step(t)

    # 1. The moments.
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * (gradient * gradient)

    # 2. Bias correction.
    m_hat = m / bias_correction(beta1, t)
    v_hat = v / bias_correction(beta2, t)

    # 3. Decoupled weight decay.
    theta = theta * (1 - lr * wd)

    # 4. The step.
    theta = theta - lr * m_hat / (math.sqrt(v_hat) + eps)
    return theta, m, v


def sgd_update(theta: float, gradient: float, lr: float = 0.001) -> float:
    """Return theta - lr * gradient: plain gradient descent, one rate for every parameter.

    Args:
        theta: the parameter.
        gradient: the gradient of the loss with respect to it.
        lr: learning rate.

    The parameter of the example of `adamw_update`, with the same gradient, moves a third as far:

    >>> print(f"{sgd_update(0.024634, -0.352893):.6f}")
    0.024987
    """
    return theta - lr * gradient


def adamw_update_list(
    theta: Sequence[float],
    gradient: Sequence[float],
    m: Sequence[float],
    v: Sequence[float],
    t: int,
    lr: float = 0.001,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    wd: float = 0.01,
) -> tuple[list[float], list[float], list[float]]:
    """Return three new lists (theta, m, v): `adamw_update` applied to each entry of flat lists.

    Args:
        theta, gradient, m, v: lists of the same length, one entry per parameter.
        t, lr, beta1, beta2, eps, wd: as in `adamw_update`, the same for all entries.

    Raises:
        ValueError: the lists differ in length, or t is less than 1; the message names the argument.

    >>> theta, m, v = adamw_update_list([1.0, 1.0], [0.5, -5.0], [0.0, 0.0], [0.0, 0.0], t=1, wd=0)
    >>> [round(value, 6) for value in theta]
    [0.999, 1.001]
    """
    _check_step(t)
    for name, values in (("gradient", gradient), ("m", m), ("v", v)):
        _check_length(name, values, theta)

    new_theta, new_m, new_v = [], [], []
    for entry in zip(theta, gradient, m, v, strict=True):
        theta_i, m_i, v_i = adamw_update(*entry, t, lr, beta1, beta2, eps, wd)
        new_theta.append(theta_i)
        new_m.append(m_i)
        new_v.append(v_i)
    return new_theta, new_m, new_v


def bias_correction(beta: float, t: int) -> float:
    """Return 1 - beta^t, without cancellation near beta = 1.

    Evaluated as written it would lose half of its digits at beta = 1 - 1e-9 and t = 2.
    """
    return -math.expm1(t * math.log(beta)) if beta > 0 else 1.0


def _check_step(t: int) -> None:
    # At t = 0 the bias correction would divide by zero.
    if not t >= 1:
        raise ValueError(f"t must be 1 or more (the first step has t = 1); got {t!r}")


def _check_length(name: str, values: Sequence[float], theta: Sequence[float]) -> None:
    if len(values) != len(theta):
        raise ValueError(
            f"{name} must have as many entries as theta ({len(theta)}); got {len(values)}"
        )
