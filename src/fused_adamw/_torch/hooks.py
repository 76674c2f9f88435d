"""What PyTorch does around each step of an optimizer, without its cost where it does nothing."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.optim import Optimizer, optimizer

Step = Callable[..., Any]


def hook_step(step: Step) -> Step:
    """As ``Optimizer.profile_hook_step``: hooks run around ``step``, and profilers see it.

    PyTorch's entry for profilers takes as long as the step of a small model, so a step without
    closure, during which no code of the user runs, is called directly where nothing observes it.
    """
    hooked = Optimizer.profile_hook_step(step)

    @wraps(step)
    def step_if_hooked(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or _is_observed(self):
            return hooked(self, *args, **kwargs)
        return step(self)

    return step_if_hooked


def _is_observed(self: Optimizer) -> bool:
    return bool(
        torch.compiler.is_compiling()  # which traces the hooks as PyTorch has them
        or self._optimizer_step_pre_hooks
        or self._optimizer_step_post_hooks
        or optimizer._global_optimizer_pre_hooks
        or optimizer._global_optimizer_post_hooks
        or torch.autograd._profiler_enabled()
    )
