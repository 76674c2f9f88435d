"""Counts of steps, which PyTorch keeps as tensors of one number."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._core import abbreviated, shown


def require_count(where: str, entry: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError for a saved state, called ``where``, whose count of steps is
    missing or not a number."""
    if "step" not in entry:
        raise ValueError(f"{where} must have 'step'; got {abbreviated(map(str, entry))}")
    step = entry["step"]
    if not isinstance(step, (Tensor, int, float)):
        raise TypeError(f"{where}['step'] must be a number or a tensor; got {shown(step)}")
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(f"{where}['step'] must be one number; got shape {tuple(step.shape)}")


def require_step_tensor(count: object) -> None:
    """Raise what PyTorch raises for a count of steps that is not a tensor."""
    if not isinstance(count, Tensor):
        raise RuntimeError(
            "API has changed, `state_steps` argument must contain a list of singleton tensors; got "
            f"{type(count).__name__}"
        )


def float32_step(count: Any) -> Tensor:
    """The count in a new float32 tensor in host memory."""
    return torch.tensor(float(count), dtype=torch.float32, device="cpu")


def usable_step(step: Any) -> Any:
    """A count of a dtype that PyTorch uses for it; numbers are left for PyTorch."""
    if not isinstance(step, Tensor) or step.dtype in (torch.float32, torch.float64):
        return step
    return float32_step(step)


def copy_of_step(step: Any) -> Any:
    """A copy of ``usable_step(step)``, to go with copies of the other state."""
    usable = usable_step(step)
    return usable.clone() if usable is step and isinstance(step, Tensor) else usable
