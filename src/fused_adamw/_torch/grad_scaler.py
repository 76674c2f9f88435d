"""What ``torch.amp.GradScaler`` leaves to an optimizer: attributes that it sets during a step."""

from collections.abc import Iterable

import torch
from torch import Tensor


def found_infinity(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a gradient is infinite or NaN, so that the step has to be left out."""
    found_inf: Tensor | None = vars(optimizer).get("found_inf")
    return found_inf is not None and bool(found_inf.item())


def grad_scale_of(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """What the gradients are multiplied by, where the optimizer has to divide them."""
    grad_scale: Tensor | None = vars(optimizer).get("grad_scale")
    return grad_scale


def is_scaled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler runs this step."""
    return any(vars(optimizer).get(name) is not None for name in ("found_inf", "grad_scale"))


def unscale(optimizer: torch.optim.Optimizer, grads: Iterable[Tensor]) -> None:
    """Divide by ``grad_scale`` in place, as PyTorch's fused update does."""
    grad_scale = grad_scale_of(optimizer)
    if grad_scale is not None:
        factor = grad_scale.item()
        with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
            for grad in grads:
                grad.div_(factor)
