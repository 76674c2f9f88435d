"""What the kernels take from the options of a group, and from PyTorch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._core import default_num_threads
from .._optim.options import DecayRates
from .._optim.param_groups import Hyperparams
from .options import DEFAULTS


def hyperparams_of(group: Mapping[str, Any], rates: DecayRates) -> Hyperparams:
    """The numbers of the formula; ``rates``: those of optional buffers.

    Raises:
        ValueError: the learning rate is a tensor with several elements, or none.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr must be one number; got a tensor of shape {tuple(lr.shape)}")
        lr = lr.item()
    return lr, group["betas"], group["eps"], group["weight_decay"], rates


def seed_of(group: Mapping[str, Any]) -> int | None:
    """The seed of stochastic rounding; None, to round to nearest as PyTorch does, without
    ``state_dtype`` and ``master_weights``."""
    if group.get("state_dtype") is None and not group.get("master_weights"):
        return None
    seed: int | None = group.get("seed", DEFAULTS["seed"])
    return seed


def num_threads() -> int:
    """The number of threads that a step may use."""
    threads: int = min(torch.get_num_threads(), default_num_threads())
    return threads
