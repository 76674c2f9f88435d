"""One parameter's AdamW updates, number by number, and the same numbers in other optimizers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import fused_adamw
from .._core import as_integer, as_number
from ..optimizer import AdamW
from ..reference import adamw_update, bias_correction, sgd_update
from ..tiny.model import TARGETS, TOKENS, TinyTransformer

THETA, GRADIENT = 0.024634, -0.352893
STEPS = 5

PARAMETER = ("E_token", (1, 0))  # E_token[<BOS>][0]
BIAS_CORRECTION_STEPS = (1, 2, 3, 10, 100, 1000)


@dataclass(frozen=True)
class Hyperparameters:
    """The hyper-parameters of AdamW, by the names of its arguments."""

    lr: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Update:
    """A step of one parameter, with the numbers on the way."""

    t: int
    theta_before: float
    gradient: float
    gradient_squared: float
    m_before: float
    v_before: float
    m: float
    v: float
    m_hat: float
    v_hat: float
    decayed: float  # theta after weight decay
    shrinkage: float  # what weight decay took away
    denominator: float  # sqrt(v_hat) + eps
    effective_lr: float  # lr / denominator
    multiplier: float  # effective_lr as a multiple of lr
    update: float  # what is subtracted from decayed
    theta: float
    change: float


@dataclass(frozen=True)
class BiasCorrection:
    """What m and v are multiplied by at a step."""

    t: int
    of_m: float  # 1 / (1 - beta1^t)
    of_v: float  # 1 / (1 - beta2^t)


@dataclass(frozen=True)
class OptimizerOutcome:
    """The same parameter and gradients in an optimizer.

    Attributes:
        after_first, after_last: theta after the first and after the last step.
        decay_first, decay_last: the part of it that is due to weight decay.
    """

    optimizer: str
    after_first: float
    after_last: float
    decay_first: float
    decay_last: float


@dataclass(frozen=True)
class AdamWUpdates:
    """The section.

    Attributes:
        hyperparameters: of all updates.
        updates: of the given parameter, one for each step.
        kernel: theta, m and v after the first of these by the compiled update, in float64.
        uncorrected: how many times as large the first update would be without bias correction.
        bias_corrections: by number of the step.
        model_updates: of ``E_token[<BOS>][0]``, with the model's gradients while it trains.
        comparisons: AdamW, Adam with L2 regularization, and SGD.
    """

    hyperparameters: Hyperparameters
    updates: list[Update]
    kernel: dict[str, float]
    uncorrected: float
    bias_corrections: list[BiasCorrection]
    model_updates: list[Update]
    comparisons: list[OptimizerOutcome]


def explain_adamw(
    theta: float = THETA,
    gradients: Sequence[float] = (GRADIENT,),
    hyperparameters: Hyperparameters | None = None,
    steps: int = STEPS,
) -> AdamWUpdates:
    """Compute the section.

    Args:
        theta: the parameter.
        gradients: one for each step, at least one; the last is used for all steps after it.
        hyperparameters: of AdamW.
        steps: number of updates, 1 or more.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
    """
    h = Hyperparameters() if hyperparameters is None else hyperparameters
    check_positive_eps(h)
    steps = as_integer("steps", steps, minimum=1)
    theta = float(as_number("theta", theta))
    gradients = [float(as_number(f"gradients[{i}]", x)) for i, x in enumerate(gradients)]
    if not gradients:
        raise ValueError("gradients must contain at least one number; got none")
    gradients = [*gradients, *gradients[-1:] * (steps - len(gradients))][:steps]
    kernel = kernel_update(theta, gradients[0], h)  # refuses invalid hyper-parameters
    updates = trajectory(theta, gradients, h)
    model = TinyTransformer()
    name, index = PARAMETER
    start = float(model.parameters[name][index])
    model_updates = trajectory(start, model_gradients(model, h, steps), h)
    return AdamWUpdates(
        h,
        updates,
        kernel,
        uncorrected_ratio(updates[0], h),
        [
            BiasCorrection(t, *(1 / bias_correction(b, t) for b in h.betas))
            for t in BIAS_CORRECTION_STEPS
        ],
        model_updates,
        compare(theta, gradients, h),
    )


# ---------------------------------------------------------------------------- one parameter


def update_of(
    theta: float, gradient: float, m: float, v: float, t: int, h: Hyperparameters
) -> Update:
    """Return one step with the numbers on the way; theta, m and v are those of the reference."""
    new_theta, new_m, new_v = adamw_update(
        theta, gradient, m, v, t, h.lr, *h.betas, h.eps, h.weight_decay
    )
    m_hat = new_m / bias_correction(h.betas[0], t)
    v_hat = new_v / bias_correction(h.betas[1], t)
    decayed = theta * (1 - h.lr * h.weight_decay)
    denominator = math.sqrt(v_hat) + h.eps
    return Update(
        t=t,
        theta_before=theta,
        gradient=gradient,
        gradient_squared=gradient * gradient,
        m_before=m,
        v_before=v,
        m=new_m,
        v=new_v,
        m_hat=m_hat,
        v_hat=v_hat,
        decayed=decayed,
        shrinkage=theta - decayed,
        denominator=denominator,
        effective_lr=h.lr / denominator,
        multiplier=1 / denominator,
        update=h.lr * m_hat / denominator,
        theta=new_theta,
        change=new_theta - theta,
    )


def trajectory(theta: float, gradients: Sequence[float], h: Hyperparameters) -> list[Update]:
    """Return one step for each gradient, from m = v = 0."""
    updates: list[Update] = []
    m = v = 0.0
    for t, gradient in enumerate(gradients, start=1):
        updates.append(update_of(theta, gradient, m, v, t, h))
        theta, m, v = updates[-1].theta, updates[-1].m, updates[-1].v
    return updates


def kernel_update(theta: float, gradient: float, h: Hyperparameters) -> dict[str, float]:
    """Return theta, m and v after the first step, by the compiled update."""
    p, g, m, v = (np.array([value]) for value in (theta, gradient, 0.0, 0.0))
    fused_adamw(p, g, m, v, 1, lr=h.lr, betas=h.betas, eps=h.eps, weight_decay=h.weight_decay)
    return {"theta": p.item(), "m": m.item(), "v": v.item()}


def uncorrected_ratio(first: Update, h: Hyperparameters) -> float:
    """Return how many times as large the first update would be with m and v for m_hat and v_hat."""
    return (1 - h.betas[0]) * first.denominator / (math.sqrt(first.v) + h.eps)


# ---------------------------------------------------------------------------- the model's own


def model_gradients(model: TinyTransformer, h: Hyperparameters, steps: int) -> list[float]:
    """Train the model; return the gradient of its `PARAMETER` at each step."""
    name, index = PARAMETER
    optimizer = adamw_of(model, h)
    gradients = []
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            _, grads = model.loss_and_gradients(TOKENS, TARGETS)
            gradients.append(float(grads[name][index]))
            optimizer.step(grads)
    return gradients


def adamw_of(model: TinyTransformer, h: Hyperparameters) -> AdamW:
    """Return an optimizer of the model's parameters."""
    return AdamW(
        model.parameters,
        lr=h.lr,
        betas=h.betas,
        eps=h.eps,
        weight_decay=h.weight_decay,
        num_threads=1,
    )


def check_positive_eps(h: Hyperparameters) -> None:
    """Raise ValueError where eps is 0: gradients of 0 would be divided by it."""
    if not as_number("eps", h.eps) > 0:
        raise ValueError(f"eps must be above 0; got {h.eps}")


# ---------------------------------------------------------------------------- other optimizers


def compare(theta: float, gradients: Sequence[float], h: Hyperparameters) -> list[OptimizerOutcome]:
    """Return what AdamW, Adam with L2 regularization and SGD make of the same numbers."""
    optimizers = {"AdamW": _adamw, "Adam with L2": _adam_with_l2, "SGD": _sgd}
    without = Hyperparameters(h.lr, h.betas, h.eps, weight_decay=0.0)
    rows = []
    for name, path in optimizers.items():
        thetas, undecayed = path(theta, gradients, h), path(theta, gradients, without)
        first, last = thetas[0], thetas[-1]
        rows.append(OptimizerOutcome(name, first, last, first - undecayed[0], last - undecayed[-1]))
    return rows


def _adamw(theta: float, gradients: Sequence[float], h: Hyperparameters) -> list[float]:
    return [update.theta for update in trajectory(theta, gradients, h)]


def _adam_with_l2(theta: float, gradients: Sequence[float], h: Hyperparameters) -> list[float]:
    thetas = []
    m = v = 0.0
    for t, gradient in enumerate(gradients, start=1):
        regularized = gradient + h.weight_decay * theta  # that of the loss + decay / 2 theta^2
        theta, m, v = adamw_update(theta, regularized, m, v, t, h.lr, *h.betas, h.eps, wd=0.0)
        thetas.append(theta)
    return thetas


def _sgd(theta: float, gradients: Sequence[float], h: Hyperparameters) -> list[float]:
    thetas = []
    for gradient in gradients:
        theta = sgd_update(theta, gradient, h.lr)
        thetas.append(theta)
    return thetas
