"""How the parameters of a group are stepped, as far as it does not depend on the parameter."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._optim.options import rates_of
from .._optim.param_groups import Hyperparams, as_python_numbers
from .._torch.arguments import hyperparams_of, num_threads, seed_of
from .._torch.dtensors import is_dtensor
from .._torch.options import check, require_kernels
from .._torch.state import Kind
from .host_state import kind_on_host


class Recipe(NamedTuple):
    """How parameters with one kind of state are stepped."""

    kind: Kind
    hyper: Hyperparams
    maximize: bool
    seed: int | None
    grad_scale: float
    num_threads: int


class Recipes:
    """The recipes of a group as it is now, one for each kind of state.

    Args:
        grad_scale: a factor of the gradients.

    Raises:
        TypeError, ValueError: an option is not valid, or needs the state on the device.
    """

    def __init__(self, group: Mapping[str, Any], grad_scale: float = 1.0) -> None:
        check(group)
        require_kernels(group, "off-loading")
        self.group = group
        self._grad_scale = grad_scale
        self._recipes: dict[tuple[torch.dtype, bool], Recipe] = {}

    def of(self, p: Tensor) -> Recipe:
        """For a parameter of a dtype that the kernels support."""
        key = p.dtype, is_dtensor(p)
        recipe = self._recipes.get(key)
        if recipe is None:
            recipe = self._recipes[key] = self._new(kind_on_host(p, self.group))
        return recipe

    def _new(self, kind: Kind) -> Recipe:
        group = self.group
        return Recipe(
            kind,
            as_python_numbers(hyperparams_of(group, rates_of(group))),
            bool(group["maximize"]),
            seed_of(group),
            self._grad_scale,
            num_threads(),
        )
