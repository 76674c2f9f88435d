"""What PyTorch does around each step of an optimizer, without its cost where it does nothing."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import compiler
from torch.autograd import _profiler_enabled
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

Step = Callable[..., Any]
Function = TypeVar("Function", bound=Callable[..., Any])

WHY_UNCOMPILED = (
    "fused_adamw updates parameters by a compiled kernel of its own, between two graphs; compile "
    "without fullgraph=True, or leave the step out of what is compiled"
)


def hook_step(step: Step, unobserved: Step) -> Step:
    """As ``Optimizer.profile_hook_step``: hooks run around ``step``, and profilers see it.

    PyTorch's entry for profilers takes as long as the step of a small model. So where nothing
    observes a step without closure, during which no code of the user runs, ``unobserved`` is called
    in place of ``step``.
    """
    hooked = Optimizer.profile_hook_step(step)
    uncompiled = outside_of_graphs(hooked)

    @wraps(step)
    def step_if_hooked(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return hooked(self, *args, **kwargs)
        # Not imported by name: Dynamo skips functions that refer to no module of PyTorch.
        if compiler.is_dynamo_compiling():
            return uncompiled(self)
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or _profiler_enabled()
        ):
            return hooked(self)
        return unobserved(self)

    return step_if_hooked


def never_compiled(function: Step) -> Step:
    """The function, which runs between two graphs where PyTorch compiles, and is in neither."""
    uncompiled = outside_of_graphs(function)

    @wraps(function)
    def call(optimizer: Optimizer) -> Any:
        return uncompiled(optimizer) if compiler.is_dynamo_compiling() else function(optimizer)

    return call


def outside_of_graphs(function: Step) -> Step:
    """The function, to be called where PyTorch compiles: it ends one graph, runs as it is, and a
    new graph begins. Unlike ``torch.compiler.disable`` it does not import the compiler."""
    uncompiled = torch._disable_dynamo(function)
    uncompiled._torchdynamo_disable = True
    uncompiled._torchdynamo_disable_msg = WHY_UNCOMPILED  # an error of fullgraph=True has it
    return cast(Step, uncompiled)


def outside_of_graphs_if_any(function: Function) -> Function:
    """``outside_of_graphs`` for a method, which that cannot take; where nothing can have been
    compiled, the method itself."""
    if not compiler_is_loaded():
        return function
    return cast(Function, torch.compiler.disable(function, reason=WHY_UNCOMPILED))


def compiler_is_loaded() -> bool:
    """Whether PyTorch may have compiled something."""
    return "torch._dynamo" in sys.modules
