"""How the parameters of a group are stepped, as far as it does not depend on the parameter."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core import as_pair, default_num_threads
from .._optim.options import rates_of
from .._optim.param_groups import Hyperparams
from .._torch.state import Kind
from .checks import check_group
from .twin import kind_on_host


class Recipe(NamedTuple):
    """How parameters with one kind of state are stepped."""

    kind: Kind
    hyper: Hyperparams
    maximize: bool
    seed: int | None
    grad_scale: float
    num_threads: int


class Recipes:
    """Those of a group as it is now, by dtype of the parameters.

    Args:
        grad_scale: a factor of the gradients.

    Raises:
        ValueError: an option needs the state on the device.
    """

    def __init__(self, group: Mapping[str, Any], grad_scale: float = 1.0) -> None:
        check_group(group)
        self.group = group
        self._grad_scale = grad_scale
        self._recipes: dict[torch.dtype, Recipe] = {}

    def of(self, p: Tensor) -> Recipe:
        """For a parameter of a dtype that the kernels support."""
        recipe = self._recipes.get(p.dtype)
        if recipe is None:
            recipe = self._recipes[p.dtype] = self._new(kind_on_host(p, self.group))
        return recipe

    def _new(self, kind: Kind) -> Recipe:
        group = self.group
        lr = group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"]
        hyper = (lr, as_pair(group["betas"]), group["eps"], group["weight_decay"], rates_of(group))
        threads = min(torch.get_num_threads(), default_num_threads())
        seed = group.get("seed", 0)
        if group.get("state_dtype") is None and not group.get("master_weights"):
            seed = None  # what has the dtypes of PyTorch is rounded as there
        return Recipe(kind, hyper, bool(group["maximize"]), seed, self._grad_scale, threads)
